package registry

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/registry/internal/decision"
)

const (
	relayQueue = 8 // batches that may wait for the broker before the intake waits too
	// claimEvery is how often to look for messages that a crash left, if a look is quick.
	claimEvery  = time.Second
	claimSeldom = 15 * time.Second // and if it is slow
	claimAtMost = 512              // messages at a time
	// forgetAfter is how long the outbox keeps what its stream has. Nothing waits for the
	// transaction that deletes it, but that transaction would delay the subscribers at the disk
	// just when they commit the event.
	forgetAfter  = 100 * time.Millisecond
	forgetAtMost = 2 * MaxBatch // messages that wait to be deleted
	// forgetWithin is how long the database may take to delete them. A database that vanished
	// without a word would otherwise hold up all publishing, or a shutdown, for a quarter of an
	// hour.
	forgetWithin = 15 * time.Second
	// retryAfter is how long a refusal whose receipt could not be published waits for the next try.
	retryAfter = time.Second
)

// publication is the messages of a decided batch. The outbox messages are in the database, and are
// deleted there once the streams have them. The answers are in no database; the requests that they
// answer are acknowledged once the streams have the answers.
type publication struct {
	outbox  []decision.Message
	lease   *lease // on the outbox messages
	answers []answer
}

type answer struct {
	decision.Message
	request *requestMessage
}

// guard is what the relay needs of the restore guard.
type guard interface {
	// MoveFrom returns the position from which the one in the database may move on; false: it must
	// stay where it is.
	MoveFrom() (from position, ok bool)
	// Moved takes the result of the transaction that deletes what was published: the position in
	// the database, or the error. [errOlder] means that the database was restored.
	Moved(ctx context.Context, now position, err error)
}

// relay publishes the messages of decided batches.
type relay struct {
	publisher *publisher
	store     *Store
	guard     guard
	log       *slog.Logger
	metrics   *metrics
	now       func() time.Time
	space     *space
	passed    *unsendable
	leases    *leases
	queue     chan publication
	// answers: apart, so that changes don't wait behind refusals, of which strangers can cause any
	// number.
	answers chan publication
	within  time.Duration // forgetWithin
}

func newRelay(js jetstream.JetStream, batches bool, store *Store, g guard, log *slog.Logger, m *metrics, now func() time.Time) *relay {
	return &relay{publisher: &publisher{js: js, batches: batches}, store: store, guard: g, log: log, metrics: m, now: now, space: m.space, passed: m.passed,
		leases: &leases{store: store, log: log, now: now, within: forgetWithin, held: map[*lease]struct{}{}},
		queue:  make(chan publication, relayQueue), answers: make(chan publication, relayQueue), within: forgetWithin}
}

// enqueue hands a batch over. It waits while the broker is behind. If ctx ends first, the rest is
// found in the outbox, or the request is delivered again.
func (r *relay) enqueue(ctx context.Context, p publication) error {
	if len(p.outbox) > 0 {
		// A place starts with the time of its lease.
		lease := r.leases.hold(p.outbox, time.Unix(0, p.outbox[0].Place.Position))
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

// run publishes until the relay is closed, and then empties its queues.
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

// close lets run end. Nothing may be enqueued after it.
func (r *relay) close() {
	close(r.queue)
	close(r.answers)
}

// runOutbox publishes messages of the outbox, and deletes them from there a little later.
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

// published is the messages of the outbox that their stream has, and the last place that one of the
// events got.
type published struct {
	messages []decision.Message
	last     uint64
	// err: why other messages are not in their stream, unless they can't be sent as they are.
	err error
}

func (p *published) add(more published) {
	p.messages, p.last = append(p.messages, more.messages...), max(p.last, more.last)
}

// publish publishes messages of the outbox. It skips those that can't be sent as they are.
func (r *relay) publish(ctx context.Context, messages []decision.Message) published {
	messages = r.passed.todo(messages, r.now())
	if len(messages) == 0 {
		return published{}
	}
	fates := r.publisher.send(ctx, messages)
	r.space.note(sayChanges, fates.err)
	sent := published{make([]decision.Message, 0, len(messages)), fates.last, fates.err}
	for i, m := range messages {
		if fates.stored[i] {
			sent.messages = append(sent.messages, m)
		}
	}
	r.metrics.published.Add(float64(len(sent.messages)))
	sent.messages = append(sent.messages, r.passed.note(messages, fates, r.now())...)
	return sent
}

// answer publishes answers, and settles the requests that they answer. If the broker has no space
// for a refusal, the refusal is dropped: waiting requests would keep the very space that is
// missing. A refusal that can't be sent as it is is dropped too.
func (r *relay) answer(ctx context.Context, answers []answer) {
	messages := make([]decision.Message, len(answers))
	for i, a := range answers {
		messages[i] = a.Message
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
			// It is decided again.
			settle = func() error { return a.request.NakWithDelay(retryAfter) }
		}
		if err := settle(); err != nil {
			r.log.Debug("acknowledge", "error", err) // it is delivered again
		}
	}
}

// forget deletes the outbox rows of messages that their stream has, and moves the position in the
// database to the last of their places.
func (r *relay) forget(ctx context.Context, sent published) {
	if len(sent.messages) == 0 {
		return
	}
	last := sent.last
	from, ok := r.guard.MoveFrom()
	if !ok {
		last = 0
	}
	within, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	now, err := r.store.deleteOutbox(within, sent.messages, from, last)
	r.guard.Moved(ctx, now, err)
	if err != nil && !errors.Is(err, errOlder) {
		r.log.Warn("published messages stay in the outbox for now and will be published again", "error", err)
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

// claimPause is the time until the next look at the outbox, after a look that took this long. A
// look passes rows that are deleted but still kept, which on CockroachDB are those of some hours.
// So looks take no more than a tenth of the time, unless that would make them too rare.
func claimPause(looked time.Duration) time.Duration {
	return min(max(10*looked, claimEvery), claimSeldom)
}

// err returns why committed changes are not announced; nil: they are.
func (r *relay) err() error { return r.space.unpublished() }

// errUnpublished means that the broker did not take all messages. The log has the cause.
var errUnpublished = errors.New("some messages were not published")

// recoverOnce returns how long the last look took if it found nothing, and 0 otherwise.
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
