package registry

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
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

// publication is the messages of a decided batch.
type publication struct {
	// Changes has the events and receipts of committed changes. They are in the outbox, and are
	// deleted there once the streams have them.
	Changes []decision.Message
	// Refusals has the other receipts. They are in no database.
	Refusals []refusalMessage
}

// refusalMessage is the receipt of a request that changed nothing: it was refused, or committed earlier.
// The request is acknowledged once the stream has the receipt.
type refusalMessage struct {
	decision.Message
	Request asker
}

// asker is the request that a refusal answers.
type asker interface {
	Ack() error
	// NakWithDelay has the request delivered again after this time; 0: at once.
	NakWithDelay(delay time.Duration) error
}

// committed is messages of the outbox on their way to the broker.
type committed struct {
	messages []decision.Message
	lease    *lease
}

// guard is what the relay needs of the restore guard.
type guard interface {
	// MoveFrom returns the position from which the one in the database may move on; false: it must
	// stay where it is.
	MoveFrom() (from ledger.Position, ok bool)
	// Moved takes the result of the transaction that deletes what was published: the position in
	// the database, or the error. [errOlder] means that the database was restored.
	Moved(ctx context.Context, now ledger.Position, err error)
}

// relayConfig configures a relay. All fields without a default are required.
type relayConfig struct {
	JetStream jetstream.JetStream
	Batches   bool // publish in atomic batches, see [Config]
	Store     *Store
	Guard     guard
	Metrics   prometheus.Registerer
	Now       func() time.Time
	Log       *slog.Logger
	Overdue   time.Duration // the age at which a row of the outbox is overdue; default 30 s
}

// relay publishes the messages of decided batches.
type relay struct {
	publisher *publisher
	store     *Store
	guard     guard
	log       *slog.Logger
	now       func() time.Time
	published prometheus.Counter
	space     *space
	passed    *unsendable
	leases    *leases
	backlog   *backlog
	changes   chan committed
	// refusals: apart, so that changes don't wait behind refusals, of which strangers can cause any
	// number.
	refusals chan []refusalMessage
	within   time.Duration // forgetWithin
}

func newRelay(cfg relayConfig) *relay {
	r := &relay{
		publisher: &publisher{js: cfg.JetStream, batches: cfg.Batches},
		store:     cfg.Store, guard: cfg.Guard, log: cfg.Log, now: cfg.Now, within: forgetWithin,
		space: newSpace(cfg.Log, cfg.Metrics), passed: newUnsendable(cfg.Log, cfg.Metrics),
		leases:  &leases{store: cfg.Store, log: cfg.Log, now: cfg.Now, within: forgetWithin, held: map[*lease]struct{}{}},
		changes: make(chan committed, relayQueue), refusals: make(chan []refusalMessage, relayQueue),
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omi_registry_published_total", Help: "Events and receipts of the outbox that their stream has.",
		}),
	}
	r.backlog = newBacklog(cfg, r.passed)
	cfg.Metrics.MustRegister(r.published)
	return r
}

// Run looks after the outbox until ctx ends. Then it empties its queues, and returns after Close.
func (r *relay) Run(ctx context.Context) {
	publishing := context.WithoutCancel(ctx) // what is committed is published before a shutdown
	var running sync.WaitGroup
	// What this process committed is published from memory, and then deleted from the outbox.
	running.Go(func() { r.publishChanges(publishing) })
	running.Go(func() { r.publishRefusals(publishing) })
	// As long as that takes, this process has the rows for itself.
	running.Go(func() { r.leases.run(ctx) })
	// If a process dies, its leases end, and another one publishes what it left in the outbox.
	running.Go(func() { r.recover(ctx) })
	running.Wait()
}

// Enqueue hands a batch over. It waits while the broker is behind. If ctx ends first, the changes
// that are left are found in the outbox, and the refused requests are delivered again.
func (r *relay) Enqueue(ctx context.Context, p publication) error {
	err := r.enqueue(ctx, p)
	if err != nil {
		for _, one := range p.Refusals {
			_ = one.Request.NakWithDelay(0)
		}
	}
	return err
}

func (r *relay) enqueue(ctx context.Context, p publication) error {
	if len(p.Changes) > 0 {
		// A place starts with the time of its lease.
		lease := r.leases.hold(p.Changes, time.Unix(0, p.Changes[0].Place.Position))
		if err := hand(ctx, r.changes, committed{p.Changes, lease}); err != nil {
			r.leases.release(lease)
			return err
		}
	}
	if len(p.Refusals) > 0 {
		return hand(ctx, r.refusals, p.Refusals)
	}
	return nil
}

func hand[T any](ctx context.Context, queue chan<- T, one T) error {
	select {
	case queue <- one:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close lets Run end. Nothing may be enqueued after it.
func (r *relay) Close() {
	close(r.changes)
	close(r.refusals)
}

// publishChanges publishes messages of the outbox, and deletes them from there a little later.
func (r *relay) publishChanges(ctx context.Context) {
	var sent published
	var held []*lease
	due := time.NewTimer(0)
	defer due.Stop()
	for open := true; open; {
		select {
		case p, ok := <-r.changes:
			if open = ok; !ok {
				break
			}
			if len(sent.messages) == 0 {
				due.Reset(forgetAfter)
			}
			one := r.publish(ctx, p.messages)
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
	messages = r.passed.sendable(messages, r.now())
	if len(messages) == 0 {
		return published{}
	}
	result := r.publisher.send(ctx, messages)
	r.space.record(kindChanges, result.err)
	sent := published{make([]decision.Message, 0, len(messages)), result.last, result.err}
	for i, m := range messages {
		if result.stored[i] {
			sent.messages = append(sent.messages, m)
		}
	}
	r.published.Add(float64(len(sent.messages)))
	sent.messages = append(sent.messages, r.passed.record(messages, result, r.now())...)
	return sent
}

func (r *relay) publishRefusals(ctx context.Context) {
	for list := range r.refusals {
		r.answer(ctx, list)
	}
}

// answer publishes refusals, and acknowledges the requests that they answer. If the broker has no
// space for a refusal, the refusal is dropped: waiting requests would keep the very space that is
// missing. A refusal that can't be sent as it is is dropped too.
func (r *relay) answer(ctx context.Context, list []refusalMessage) {
	messages := make([]decision.Message, len(list))
	for i, a := range list {
		messages[i] = a.Message
	}
	result := r.publisher.send(ctx, messages)
	r.space.record(kindRefusals, result.err)
	for i, a := range list {
		finish := a.Request.Ack
		switch {
		case result.stored[i]:
		case result.noSpace[i], result.faults[i] != nil:
			r.space.dropRefusal()
		default:
			// It is decided again.
			finish = func() error { return a.Request.NakWithDelay(retryAfter) }
		}
		if err := finish(); err != nil {
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
	now, err := r.store.outbox.Delete(within, sent.messages, from, last)
	r.guard.Moved(ctx, now, err)
	if err != nil && !errors.Is(err, ledger.ErrOlder) {
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
			r.passed.retryNow() // it may be another server, or one with other settings
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

// Err returns why committed changes are not announced: [ErrNoSpace], or [ErrUnpublished] with the
// error of the last try. Nil: they are announced.
func (r *relay) Err() error { return r.space.unpublished() }

// SpaceErr returns [ErrNoSpace] while the broker has no space for what is to be published.
func (r *relay) SpaceErr() error { return r.space.err() }

// Unsendable returns how many changes have a message that the broker refuses as it is.
func (r *relay) Unsendable() int { return r.passed.count() }

// Overdue returns the age of the oldest row of the outbox if that row is overdue, and 0 otherwise.
// It asks the database now and then.
func (r *relay) Overdue(ctx context.Context) (time.Duration, error) { return r.backlog.check(ctx) }

// errUnpublished means that the broker did not take all messages. The log has the cause.
var errUnpublished = errors.New("some messages were not published")

// recoverOnce returns how long the last look took if it found nothing, and 0 otherwise.
func (r *relay) recoverOnce(ctx context.Context) (looked time.Duration, err error) {
	for {
		began := time.Now()
		stale, err := r.store.outbox.Stale(ctx, r.now())
		if err != nil {
			return 0, err
		}
		if !stale {
			r.space.nothingWaits()
			return time.Since(began), nil
		}
		messages, err := r.store.outbox.Claim(ctx, claimAtMost, r.now())
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
