package registry

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
)

const (
	relayQueue  = 8                // batches that may wait for the broker before intake waits too
	claimEvery  = time.Second      // how often messages that a crash left are looked for, where that is quick
	claimSeldom = 15 * time.Second // and where it is slow
	claimAtMost = 512              // messages a time
	// forgetAfter is how long the outbox keeps what its stream has. To delete it is a transaction that nobody waits for, but that
	// would make everybody wait for the disk just when the subscribers commit the event.
	forgetAfter  = 100 * time.Millisecond
	forgetAtMost = 2 * MaxBatch // messages that wait for that
	// forgetWithin is how long the database may take for it. One that vanished without a word would hold up everything that is to be
	// published, or a shutdown, for a quarter of an hour.
	forgetWithin = 15 * time.Second
	retryAfter   = time.Second // a refusal whose receipt could not be published is decided again
)

// publication is what a decided batch has to say. Its outbox messages are in the database, and are deleted from there
// once the streams have them. Its answers are in no database: what they answer is acknowledged once the streams have
// them, and not before.
type publication struct {
	outbox  []signed
	lease   *lease // of outbox
	answers []answer
}

type answer struct {
	signed
	request *consume.Message
}

// relay publishes what was decided.
type relay struct {
	publisher *publisher
	store     *Store
	fence     *fence
	log       *slog.Logger
	metrics   *metrics
	now       func() time.Time
	space     *space
	passed    *unsendable
	leases    *leases
	queue     chan publication
	answers   chan publication // apart: what is committed does not wait behind refusals, which strangers make any number of
	within    time.Duration    // forgetWithin
}

func newRelay(js jetstream.JetStream, store *Store, f *fence, log *slog.Logger, m *metrics, now func() time.Time) *relay {
	return &relay{publisher: &publisher{js: js}, store: store, fence: f, log: log, metrics: m, now: now, space: m.space, passed: m.passed,
		leases: &leases{store: store, log: log, now: now, within: forgetWithin, held: map[*lease]struct{}{}},
		queue:  make(chan publication, relayQueue), answers: make(chan publication, relayQueue), within: forgetWithin}
}

// enqueue hands a batch over. It waits while the broker is behind; what it can't hand over because ctx ended is found
// in the outbox, or delivered again.
func (r *relay) enqueue(ctx context.Context, p publication) error {
	if len(p.outbox) > 0 {
		// A place begins with the time at which it was leased.
		lease := r.leases.hold(p.outbox, time.Unix(0, p.outbox[0].place.position))
		if err := hand(ctx, r.queue, publication{outbox: p.outbox, lease: lease}); err != nil {
			r.leases.release(lease)
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
			r.answer(ctx, p.answers)
		}
	})
	r.runOutbox(ctx)
	answers.Wait()
}

// close lets run end. Nothing may be enqueued any more.
func (r *relay) close() {
	close(r.queue)
	close(r.answers)
}

// runOutbox publishes what is in the outbox, and some time later deletes it from there.
func (r *relay) runOutbox(ctx context.Context) {
	var sent published
	var held []*lease
	due := time.NewTimer(0)
	defer due.Stop()
	for open := true; open; {
		select {
		case p, ok := <-r.queue:
			if open = ok; !ok {
				break
			}
			if len(sent.messages) == 0 {
				due.Reset(forgetAfter)
			}
			one := r.publish(ctx, p.outbox)
			if sent.add(one); one.err == nil {
				held = append(held, p.lease)
			} else {
				r.leases.release(p.lease) // recover tries again
			}
			if len(sent.messages) < forgetAtMost {
				continue
			}
		case <-due.C:
		}
		r.forget(ctx, sent)
		r.leases.release(held...)
		sent, held = published{}, held[:0]
	}
}

// published is messages of the outbox that their stream has, and the last place of an event among them.
type published struct {
	messages []signed
	last     uint64
	err      error // why others are not in their stream, unless that is their own fault
}

func (p *published) add(more published) {
	p.messages, p.last = append(p.messages, more.messages...), max(p.last, more.last)
}

// publish publishes messages of the outbox, and passes over those that can't be sent as they are.
func (r *relay) publish(ctx context.Context, messages []signed) published {
	messages = r.passed.todo(messages, r.now())
	if len(messages) == 0 {
		return published{}
	}
	fates := r.publisher.send(ctx, messages)
	r.space.note(sayChanges, fates.err)
	sent := published{make([]signed, 0, len(messages)), fates.last, fates.err}
	for i, m := range messages {
		if fates.stored[i] {
			sent.messages = append(sent.messages, m)
		}
	}
	r.metrics.published.Add(float64(len(sent.messages)))
	sent.messages = append(sent.messages, r.passed.note(messages, fates, r.now())...)
	return sent
}

// answer publishes answers, and settles the requests that they answer. A refusal that the broker
// has no space for is dropped: if it waited, it would keep the very space that is lacking. So is one that it refuses as it is.
func (r *relay) answer(ctx context.Context, answers []answer) {
	messages := make([]signed, len(answers))
	for i, a := range answers {
		messages[i] = a.signed
	}
	fates := r.publisher.send(ctx, messages)
	r.space.note(sayRefusals, fates.err)
	for i, a := range answers {
		settle := a.request.Ack
		switch {
		case fates.stored[i]:
		case fates.lacking[i], fates.faults[i] != nil:
			r.space.drop()
		default:
			settle = func() error { return a.request.NakWithDelay(retryAfter) } // it is decided again
		}
		if err := settle(); err != nil {
			r.log.Debug("acknowledge", "error", err) // it is delivered again
		}
	}
}

// forget deletes the outbox rows of messages that their stream has, and moves the position in the database on to the last of
// their places.
func (r *relay) forget(ctx context.Context, sent published) {
	if len(sent.messages) == 0 {
		return
	}
	last := sent.last
	from, ok := r.fence.moving()
	if !ok {
		last = 0
	}
	within, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	now, err := r.store.deleteOutbox(within, sent.messages, from, last)
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
	conn := r.publisher.js.Conn()
	connected := conn.StatusChanged(nats.CONNECTED)
	defer conn.RemoveStatusListener(connected)
	for {
		looked, err := r.recoverOnce(ctx)
		if err != nil && !errors.Is(err, errUnpublished) && ctx.Err() == nil {
			r.log.Warn("recovering the outbox failed, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-connected:
			r.passed.again() // it may be another server, or one with other settings
		case <-time.After(claimPause(looked)):
		}
	}
}

// claimPause is the time until the next look at the outbox, after one that took so long. A look passes what is deleted and still kept,
// which on CockroachDB is all of some hours. So it takes no more than a tenth of the time, as long as that is not too seldom.
func claimPause(looked time.Duration) time.Duration {
	return min(max(10*looked, claimEvery), claimSeldom)
}

// err returns why committed changes are not announced, nil while they are.
func (r *relay) err() error { return r.space.unpublished() }

// errUnpublished means that the broker did not take all messages; the log says why.
var errUnpublished = errors.New("some messages were not published")

// recoverOnce returns how long the last look took that found nothing, 0 if none did.
func (r *relay) recoverOnce(ctx context.Context) (looked time.Duration, err error) {
	for {
		began := time.Now()
		stale, err := r.store.outboxStale(ctx, r.now())
		if err != nil {
			return 0, err
		}
		if !stale {
			r.space.nothingWaits()
			return time.Since(began), nil
		}
		messages, err := r.store.claimOutbox(ctx, claimAtMost, r.now())
		if err != nil || len(messages) == 0 {
			return 0, err
		}
		lease := r.leases.hold(messages, r.now())
		sent := r.publish(ctx, messages)
		if len(sent.messages) > 0 {
			r.log.Info("published messages that were left in the outbox", "messages", len(sent.messages))
		}
		r.forget(ctx, sent)
		r.leases.release(lease)
		if sent.err != nil {
			return 0, errUnpublished
		}
	}
}
