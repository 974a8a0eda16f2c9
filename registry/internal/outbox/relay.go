package outbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

const (
	queueLength = 8 // batches that may wait for the broker before the intake waits too
	// deleteAfter is how long the outbox keeps what its stream has. Nothing waits for the
	// transaction that deletes it, but that transaction would delay the subscribers at the disk
	// just when they commit the event.
	deleteAfter  = 100 * time.Millisecond
	deleteAtMost = 4096 // messages that wait to be deleted: two for each request of a large batch
	// deleteWithin is how long the database may take to delete them. A database that vanished
	// without a word would otherwise hold up all publishing, or a shutdown, for a quarter of an
	// hour.
	deleteWithin = 15 * time.Second
	// retryAfter is how long a refusal whose receipt could not be published waits for the next try.
	retryAfter = time.Second
)

// Publication is the messages of a decided batch.
type Publication struct {
	// Changes has the events and receipts of committed changes. They are in the outbox, and are
	// deleted there once the streams have them.
	Changes []decision.Message
	// Refusals has the other receipts. They are in no database.
	Refusals []Refusal
}

// Refusal is the receipt of a request that changed nothing: it was refused, or committed earlier.
// The request is acknowledged once the stream has the receipt.
type Refusal struct {
	decision.Message
	Request Request
}

// Request is the request that a refusal answers.
type Request interface {
	Ack() error
	// NakWithDelay has the request delivered again after this time; 0: at once.
	NakWithDelay(delay time.Duration) error
}

// committed is messages of the outbox on their way to the broker.
type committed struct {
	messages []decision.Message
	lease    *lease
}

// Guard is what the relay needs of the restore guard.
type Guard interface {
	// MoveFrom returns the position from which the one in the database may move on; false: it must
	// stay where it is.
	MoveFrom() (from ledger.Position, ok bool)
	// Moved takes the result of the transaction that deletes what was published: the position in
	// the database, or the error. [ledger.ErrOlder] means that the database was restored.
	Moved(ctx context.Context, now ledger.Position, err error)
}

// Config configures a relay. All fields without a default are required.
type Config struct {
	JetStream jetstream.JetStream // with [JetStreamOptions]
	// Batches publishes 64 messages or more in atomic batches. Default: one by one.
	Batches bool
	Outbox  *ledger.Outbox
	Guard   Guard
	Metrics prometheus.Registerer
	Now     func() time.Time
	Log     *slog.Logger
	Overdue time.Duration // the age at which a row of the outbox is overdue; default 30 s
}

// JetStreamOptions returns what the relay needs of its JetStream context if a batch has at most so
// many requests.
func JetStreamOptions(batch int) []jetstream.JetStreamOpt {
	return []jetstream.JetStreamOpt{jetstream.WithPublishAsyncMaxPending(2 * queueLength * batch), jetstream.WithPublishAsyncTimeout(publishWithin)}
}

// Relay publishes the messages of decided batches. Its methods are safe for concurrent use.
type Relay struct {
	publisher  *publisher
	outbox     *ledger.Outbox
	guard      Guard
	log        *slog.Logger
	now        func() time.Time
	published  prometheus.Counter
	space      *space
	unsendable *unsendable
	leases     *leases
	backlog    *backlog
	changes    chan committed
	// refusals: apart, so that changes don't wait behind refusals, of which strangers can cause any
	// number.
	refusals     chan []Refusal
	deleteWithin time.Duration
}

// New returns a relay that is ready to run, and registers its metrics.
func New(cfg Config) *Relay {
	r := &Relay{
		publisher: &publisher{js: cfg.JetStream, batches: cfg.Batches},
		outbox:    cfg.Outbox, guard: cfg.Guard, log: cfg.Log, now: cfg.Now, deleteWithin: deleteWithin,
		space: newSpace(cfg.Log, cfg.Metrics), unsendable: newUnsendable(cfg.Log, cfg.Metrics),
		leases:  &leases{outbox: cfg.Outbox, log: cfg.Log, now: cfg.Now, within: deleteWithin, held: map[*lease]struct{}{}},
		changes: make(chan committed, queueLength), refusals: make(chan []Refusal, queueLength),
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omi_registry_published_total", Help: "Events and receipts of the outbox that their stream has.",
		}),
	}
	r.backlog = newBacklog(cfg, r.unsendable)
	cfg.Metrics.MustRegister(r.published)
	return r
}

// Run publishes until ctx ends and Close is called. Before it returns, it empties its queues, so
// that committed changes are published before a shutdown.
func (r *Relay) Run(ctx context.Context) {
	publishing := context.WithoutCancel(ctx)
	var running sync.WaitGroup
	// What this process committed is published from memory, and then deleted from the outbox.
	running.Go(func() { r.publishChanges(publishing) })
	running.Go(func() {
		for list := range r.refusals {
			r.sendRefusals(publishing, list)
		}
	})
	// Until then, this process renews its leases on the rows, so that no other one publishes them
	// too.
	running.Go(func() { r.leases.run(ctx) })
	// If a process dies, its leases end, and any other one publishes what it left in the outbox.
	running.Go(func() { r.recover(ctx) })
	running.Wait()
}

// Enqueue hands a batch over. It waits while the broker is behind. If ctx ends first, the changes
// that are left are found in the outbox, and the refused requests are delivered again.
func (r *Relay) Enqueue(ctx context.Context, p Publication) (err error) {
	defer func() {
		for i := 0; err != nil && i < len(p.Refusals); i++ {
			_ = p.Refusals[i].Request.NakWithDelay(0)
		}
	}()
	if len(p.Changes) > 0 {
		// A place starts with the time of its lease.
		lease := r.leases.hold(p.Changes, time.Unix(0, p.Changes[0].Place.Position))
		if err := push(ctx, r.changes, committed{p.Changes, lease}); err != nil {
			r.leases.release(lease)
			return err
		}
	}
	if len(p.Refusals) > 0 {
		return push(ctx, r.refusals, p.Refusals)
	}
	return nil
}

func push[T any](ctx context.Context, queue chan<- T, one T) error {
	select {
	case queue <- one:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close lets Run end. Nothing may be enqueued after it.
func (r *Relay) Close() {
	close(r.changes)
	close(r.refusals)
}

// Err returns why committed changes are not announced: [ErrNoSpace], or [ErrUnpublished] with the
// error of the last try. Nil: they are announced.
func (r *Relay) Err() error { return r.space.unpublished() }

// SpaceErr returns [ErrNoSpace] while the broker has no space for what is to be published.
func (r *Relay) SpaceErr() error { return r.space.err() }

// Unsendable returns how many changes have a message that the broker refuses as it is.
func (r *Relay) Unsendable() int { return r.unsendable.count() }

// Overdue returns the age of the oldest row of the outbox if that row is overdue, and 0 otherwise.
// It asks the database now and then.
func (r *Relay) Overdue(ctx context.Context) (time.Duration, error) { return r.backlog.check(ctx) }

// publishChanges publishes messages of the outbox, and deletes them from there a little later.
func (r *Relay) publishChanges(ctx context.Context) {
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
				due.Reset(deleteAfter)
			}
			one := r.publish(ctx, p.messages)
			sent.messages, sent.last = append(sent.messages, one.messages...), max(sent.last, one.last)
			if one.err == nil {
				held = append(held, p.lease)
			} else {
				r.leases.release(p.lease) // recover tries again
			}
			if len(sent.messages) < deleteAtMost {
				continue
			}
		case <-due.C:
		}
		r.delete(ctx, sent)
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

// publish publishes messages of the outbox. It skips those that can't be sent as they are.
func (r *Relay) publish(ctx context.Context, messages []decision.Message) published {
	messages = r.unsendable.sendable(messages, r.now())
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
	sent.messages = append(sent.messages, r.unsendable.record(messages, result, r.now())...)
	return sent
}

// sendRefusals publishes refusals, and acknowledges the requests that they answer. If the broker
// has no space for a refusal, the refusal is dropped: waiting requests would keep the very space
// that is missing. A refusal that can't be sent as it is is dropped too.
func (r *Relay) sendRefusals(ctx context.Context, list []Refusal) {
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

// delete deletes the outbox rows of messages that their stream has, and moves the position in the
// database to the last of their places.
func (r *Relay) delete(ctx context.Context, sent published) {
	if len(sent.messages) == 0 {
		return
	}
	last := sent.last
	from, ok := r.guard.MoveFrom()
	if !ok {
		last = 0
	}
	within, cancel := context.WithTimeout(ctx, r.deleteWithin)
	defer cancel()
	now, err := r.outbox.Delete(within, sent.messages, from, last)
	r.guard.Moved(ctx, now, err)
	if err != nil && !errors.Is(err, ledger.ErrOlder) {
		r.log.Warn("published messages stay in the outbox for now and will be published again", "error", err)
	}
}
