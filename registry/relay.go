package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
)

const (
	relayQueue    = 8               // batches that may wait for the broker before intake waits too
	claimEvery    = time.Second     // how often messages that a crash left are looked for
	claimAtMost   = 512             // messages a time
	publishWithin = 5 * time.Second // for the broker to say that it has a batch
	retryAfter    = time.Second     // a refusal whose receipt could not be published is decided again
)

// publication is what a decided batch has to say. Its outbox messages are in the database, and are deleted from there
// once the streams have them. Its answers are in no database: what they answer is acknowledged once the streams have
// them, and not before.
type publication struct {
	outbox  []signed
	answers []answer
}

type answer struct {
	signed
	request *consume.Message
}

// relay publishes what was decided.
type relay struct {
	js      jetstream.JetStream
	store   *Store
	fence   *fence
	log     *slog.Logger
	metrics *metrics
	now     func() time.Time
	queue   chan publication
	answers chan publication // apart: what is committed does not wait behind refusals, which strangers make any number of
}

func newRelay(js jetstream.JetStream, store *Store, f *fence, log *slog.Logger, m *metrics, now func() time.Time) *relay {
	return &relay{js: js, store: store, fence: f, log: log, metrics: m, now: now,
		queue: make(chan publication, relayQueue), answers: make(chan publication, relayQueue)}
}

// enqueue hands a batch over. It waits while the broker is behind; what it can't hand over because ctx ended is found
// in the outbox, or delivered again.
func (r *relay) enqueue(ctx context.Context, p publication) error {
	if len(p.outbox) > 0 {
		if err := hand(ctx, r.queue, publication{outbox: p.outbox}); err != nil {
			return err
		}
	}
	if len(p.answers) > 0 {
		return hand(ctx, r.answers, publication{answers: p.answers})
	}
	return nil
}

func hand(ctx context.Context, queue chan<- publication, p publication) error {
	select {
	case queue <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run publishes until the relay is closed, and then what is left in it.
func (r *relay) run(ctx context.Context) {
	var answers sync.WaitGroup
	answers.Go(func() {
		for p := range r.answers {
			r.publish(ctx, p)
		}
	})
	for p := range r.queue {
		r.publish(ctx, p)
	}
	answers.Wait()
}

// close lets run end. Nothing may be enqueued any more.
func (r *relay) close() {
	close(r.queue)
	close(r.answers)
}

// publish sends a batch, in its order, and settles what the streams have.
func (r *relay) publish(ctx context.Context, p publication) {
	messages := make([]signed, 0, len(p.outbox)+len(p.answers))
	messages = append(messages, p.outbox...)
	for _, a := range p.answers {
		messages = append(messages, a.signed)
	}
	stored, last, err := r.send(ctx, messages)
	if err != nil {
		r.log.Warn("publishing failed, it will be tried again", "error", err)
	}
	r.forget(ctx, p.outbox, stored, last)
	for i, a := range p.answers {
		settle := a.request.Ack
		if !stored[len(p.outbox)+i] {
			settle = func() error { return a.request.NakWithDelay(retryAfter) } // it is decided again
		}
		if err := settle(); err != nil {
			r.log.Debug("acknowledge", "error", err) // it is delivered again
		}
	}
}

// send publishes messages and reports which of them their stream has, and the last place in the stream of invalidations
// that one of them has. A reconnect fails those that are pending,
// although they may have landed; sending them again is safe, since every reader knows a message by its nonce.
func (r *relay) send(ctx context.Context, messages []signed) (stored []bool, last uint64, err error) {
	stored = make([]bool, len(messages))
	futures := make([]jetstream.PubAckFuture, len(messages))
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	for i, m := range messages {
		msg := &nats.Msg{Subject: m.subject, Data: m.payload, Header: nats.Header{jetstream.MsgIDHeader: {m.nonce.String()}}}
		if futures[i], err = r.js.PublishMsgAsync(msg); err != nil {
			err = fmt.Errorf("publish to %s: %w", m.subject, err)
			break
		}
	}
	for i, future := range futures {
		if future == nil {
			break
		}
		select {
		case ack := <-future.Ok():
			stored[i] = true
			if ack.Stream == events.InvalidationStream {
				last = max(last, ack.Sequence)
			}
		case failed := <-future.Err():
			err = fmt.Errorf("publish to %s: %w", messages[i].subject, failed)
		case <-ctx.Done():
			return stored, last, errors.Join(err, fmt.Errorf("wait for the broker: %w", ctx.Err()))
		}
	}
	return stored, last, err
}

// forget deletes the outbox rows of those messages that their stream has, and moves the position in the database on to the
// last of their places.
func (r *relay) forget(ctx context.Context, messages []signed, stored []bool, last uint64) {
	var published []signed
	for i, m := range messages {
		if stored[i] {
			published = append(published, m)
		}
	}
	if len(published) == 0 {
		return
	}
	r.metrics.published.Add(float64(len(published)))
	from, ok := r.fence.moving()
	if !ok {
		last = 0
	}
	now, err := r.store.deleteOutbox(ctx, published, from, last)
	switch {
	case errors.Is(err, errOlder):
		r.fence.suspect("messages that were to be published are gone from the outbox, or the position went back")
	case err != nil:
		r.fence.doubt(ctx, err)
		r.log.Warn("published messages stay in the outbox for now and will be published again", "error", err)
	default:
		r.fence.moved(now)
	}
}

// recover publishes what a crash or an outage left in the outbox, until ctx ends.
func (r *relay) recover(ctx context.Context) {
	ticker := time.NewTicker(claimEvery)
	defer ticker.Stop()
	for {
		if err := r.recoverOnce(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("recovering the outbox failed, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (r *relay) recoverOnce(ctx context.Context) error {
	for {
		stale, err := r.store.outboxStale(ctx, r.now())
		if err != nil || !stale {
			return err
		}
		messages, err := r.store.claimOutbox(ctx, claimAtMost, r.now())
		if err != nil || len(messages) == 0 {
			return err
		}
		r.log.Info("publishing messages that were left in the outbox", "messages", len(messages))
		stored, last, err := r.send(ctx, messages)
		r.forget(ctx, messages, stored, last)
		if err != nil {
			return err
		}
	}
}
