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
	working sync.Mutex    // held while messages are worked on
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
