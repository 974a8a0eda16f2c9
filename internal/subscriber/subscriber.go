// Package subscriber is what all core services share: a durable consumer on the stream of events,
// and a database that holds what the events said (docs/protocol.md §7.2).
//
//	stream ──▶ batch ──▶ verify ──▶ one transaction: ids and effects ──▶ memory ──▶ acknowledge
//	                       │                     ▲
//	                       └── not to be applied ┘ set aside, for an operator to look at
//
// Each step can be repeated, and a crash between any two of them does no harm: the batch comes
// again until it is acknowledged, the ids of its events say which of them have taken effect, and a
// keyring that is joined twice stays the same.
package subscriber

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
)

// Config says what a subscriber reads and what it does with it. JetStream, Durable, Trust, Store
// and Log are required.
type Config struct {
	JetStream jetstream.JetStream
	// Durable names the consumer on the stream. Each state has one of its own. A process gets
	// [ErrInUse] if another one uses the name, unless both have the same database and neither has
	// an Instance.
	Durable string
	// Instance says that the durable is for one process alone, which keeps its state in memory, and
	// names that process.
	Instance string
	// ForgetAfter is how long the broker keeps the durable without a connected process. Zero: for
	// ever.
	ForgetAfter time.Duration
	Trust       events.Trust
	Store       *storage.Store
	// Applied gets each batch once its effects are committed, and before it is acknowledged: all
	// its events, and those that were new to the database. For the others, the database had an
	// event with the same id, whose effect this process may not know. After an error the batch
	// comes again. Applied is never called concurrently.
	Applied func(ctx context.Context, batch, fresh []events.Invalidation) error
	Log     *slog.Logger
	// Metrics is where the subscriber registers its metrics. Nil: nowhere.
	Metrics prometheus.Registerer
	// Now is the clock. Default time.Now.
	Now func() time.Time

	hangsAfter time.Duration // of work in hand; 0: the default
}

// ErrNotReady means that the subscriber has not read the stream up to the time at which it started.
var ErrNotReady = errors.New("the invalidations are not yet read up to the start of this process")

// Subscriber applies events to its store until it is stopped.
type Subscriber struct {
	cfg        Config
	started    int64 // seconds since the Unix epoch
	metrics    *metrics
	asOf       asOf
	status     status
	limits     atomic.Pointer[consume.Limits] // of the durable, as it was opened
	inHand     *consume.InHand
	consumer   atomic.Pointer[jetstream.Consumer] // nil until the stream is there
	opened     chan struct{}                      // tells watch about a new consumer
	self       owner
	otherOwner otherOwner
	taken      chan error // why the durable is no longer ours

	trust      atomic.Pointer[events.Trust] // whose messages are believed
	wanted     atomic.Pointer[events.Trust] // whose messages are to be believed soon
	woken      chan struct{}                // tells followTrust about a new consumer or another trust
	rereading  atomic.Bool                  // the stream is being read again, or is to be
	announcing sync.Mutex                   // held while the durable's metadata changes
	setAside   setAside

	// The code that works on messages and opens consumers, one after the other, owns the rest.
	working sync.Mutex    // held while messages are worked on, as they come and as they are read again
	created int64         // of the stream, nanoseconds since the Unix epoch; 0: unknown yet
	written storage.Place // the position in the database, as this process left it

	database string             // its id
	replies  *nats.Subscription // nil: the durable is not ours yet
	owned    bool               // it was ours
}

// batchSize is the largest batch. A database writes a page once for a batch, so larger batches make
// a subscriber faster that has much of the stream to read. Twice as many messages may wait for an
// acknowledgement ([streams.SubscriberConsumer]).
const batchSize = 4096

// New returns a subscriber that does nothing yet.
func New(cfg Config) (*Subscriber, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Applied == nil {
		cfg.Applied = func(context.Context, []events.Invalidation, []events.Invalidation) error { return nil }
	}
	started := cfg.Now().Unix()
	s := &Subscriber{
		cfg: cfg, started: started, metrics: newMetrics(cfg.Durable), self: newOwner(started),
		opened: make(chan struct{}, 1), woken: make(chan struct{}, 1), taken: make(chan error, 1),
	}
	s.inHand = consume.NewInHand("events", cfg.Store.Where(), stageCommit, cfg.hangsAfter, cfg.Log)
	s.trust.Store(&cfg.Trust)
	s.wanted.Store(&cfg.Trust)
	if err := s.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("set up the subscriber %s: %w", cfg.Durable, err)
	}
	return s, nil
}

// Run applies events until ctx ends, and then returns nil. It waits for a stream, a broker or a
// database that is unavailable. [ErrDurable] and [ErrInUse] end it.
func (s *Subscriber) Run(ctx context.Context) error {
	defer s.release()
	err := s.consume(ctx)
	select {
	case err = <-s.taken:
	default:
	}
	if s.owned && errors.Is(err, ErrInUse) {
		err = errors.Join(err, s.handOver(ctx))
	}
	return err
}

func (s *Subscriber) consume(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { s.watch(ctx, stop) })
	running.Go(func() { s.followTrust(ctx) })
	err := consume.Run(ctx, consume.Config[struct{}]{
		Open: func(ctx context.Context) (consume.Source[struct{}], error) {
			consumer, err := s.open(ctx)
			if errors.Is(err, ErrDurable) || errors.Is(err, ErrInUse) {
				err = backoff.Permanent(err) // trying again can't change it
			}
			if err != nil {
				return nil, err
			}
			return consume.NewPull(consumer, s.cfg.JetStream.Conn(), 2*batchSize).Source(ctx, batchSize, nil)
		},
		Handle:      s.handle,
		SetAside:    s.setPoisonAside,
		Unavailable: sqldb.Transient,
		Batch:       batchSize,
		Conn:        s.cfg.JetStream.Conn(),
		InHand:      s.inHand,
		Log:         s.cfg.Log,
	})
	stop()
	running.Wait()
	return err
}

// Ready returns nil once the subscriber has read the stream up to the time at which it started, and
// [ErrNotReady] before. It stays nil while the broker is unavailable: the state then grows older,
// as [Subscriber.AsOf] says.
func (s *Subscriber) Ready() error {
	if s.AsOf() < s.started {
		return ErrNotReady
	}
	return nil
}

func (s *Subscriber) handle(ctx context.Context, batch []*consume.Plain) error {
	fresh, err := s.apply(ctx, incoming.Batch(batch))
	if fresh > 0 { // refused or repeated events may write nothing
		batch[0].Witness()
	}
	return err
}

// The stages of a batch, for the log if it hangs.
const (
	stageAnnounce = "tell" // the broker what is not believed
	stageCommit   = "commit"
)

// Receive applies a batch. When it returns nil, each message has had its effect or is set aside,
// for good.
func (s *Subscriber) Receive(ctx context.Context, batch []incoming.Delivery) error {
	_, err := s.apply(ctx, batch)
	return err
}

// apply returns how many events were new.
func (s *Subscriber) apply(ctx context.Context, batch []incoming.Delivery) (int, error) {
	s.working.Lock()
	defer s.working.Unlock()
	sorted, unbelieved := s.verify(batch)
	if s.consumer.Load() != nil && unbelieved.from > 0 {
		s.inHand.Stage(stageAnnounce)
		if err := s.announce(ctx, func(d announcement) { d.add(unbelievedMetadata, unbelieved); d.narrow(unbelieved.trusts) }); err != nil {
			return 0, err
		}
	}
	s.inHand.Stage(stageCommit)
	fresh, err := s.commit(ctx, lastOf(batch), sorted.Events, s.toSetAside(sorted.Refused))
	if err != nil {
		return 0, err
	}
	s.report(ctx, &sorted, fresh)
	if err := s.applied(ctx, batch, &sorted, fresh); err != nil {
		return 0, err
	}
	s.asOf.applied(batch)
	return len(fresh), nil
}

// applied reports a batch that is committed, and removes its events from the list of what is set
// aside.
func (s *Subscriber) applied(ctx context.Context, batch []incoming.Delivery, sorted *incoming.Sorted, fresh []events.Invalidation) error {
	if err := s.cfg.Applied(ctx, sorted.Events, fresh); err != nil {
		return err
	}
	return s.removeApplied(ctx, batch, sorted.Refused)
}

// setPoisonAside keeps a message that makes the code above panic, or fail while it applies others.
// The event stays in the stream, and is tried again when the process restarts.
func (s *Subscriber) setPoisonAside(ctx context.Context, m *consume.Plain, why consume.Fault) error {
	s.working.Lock()
	defer s.working.Unlock()
	return s.setAsideUnhandled(ctx, incoming.Of(m), why.Reason, why.Detail)
}

// setAsideUnhandled sets aside what can't be handled.
func (s *Subscriber) setAsideUnhandled(ctx context.Context, d incoming.Delivery, reason, detail string) error {
	if err := s.announce(ctx, func(says announcement) { says.addFailed(d.Sequence) }); err != nil {
		return err
	}
	if _, err := s.commit(ctx, d.Sequence, nil, []storage.SetAside{s.newSetAside(d, reason, detail)}); err != nil {
		return err
	}
	s.metrics.events.WithLabelValues(resultSetAside, reason).Inc()
	return nil
}
