package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/refusal"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/outbox"
	"omiappreg.org/keyrotation/registry/internal/provision"
	"omiappreg.org/keyrotation/registry/internal/queue"
	"omiappreg.org/keyrotation/registry/internal/restore"
)

// Config configures a registry.
type Config struct {
	// Policy is the rules that an operator may choose. All registries on one database share them.
	// The first one that runs records them there, and Run returns [ErrOtherPolicy] if another
	// policy is recorded.
	Policy Policy
	// ChangePolicy replaces the recorded policy by this one. Running registries adopt it within
	// seconds.
	ChangePolicy bool
	// Key signs events, receipts and records. Required.
	Key events.SigningKey
	// Trust names earlier keys of this registry, so that the events that they signed still count as
	// its own. A stolen key has an end.
	Trust []events.TrustedKey
	// Store is the database. Required. The caller closes it after Run.
	Store *Store
	// Conn is the connection to the broker. Required. It should reconnect for ever.
	Conn *nats.Conn
	// Batch is how many requests are decided together. A batch may be an eighth longer to keep the
	// requests of one service together, but no longer than [MaxBatch]. Default 1024.
	Batch int
	// Replicas is the number of replicas of the streams that Run creates. Default 1; 3 on a
	// cluster.
	Replicas int
	// PublishBatches publishes 64 messages or more in atomic batches. It is for a broker that
	// writes each message to the disk by itself (`sync_interval: always`), which writes a batch at
	// once. Any other broker takes messages one by one with less work.
	PublishBatches bool
	// Streams limits the size of the streams.
	Streams StreamLimits
	// Committed is called with the changes of each batch after they are committed. It is never
	// called concurrently. Nil disables the callback.
	Committed func([]events.Invalidation)
	// Metrics registers the registry's metrics. Default: a registry of its own, which nothing
	// reads.
	Metrics prometheus.Registerer
	// Now is the clock. Default [time.Now].
	Now func() time.Time
	// Log is required.
	Log *slog.Logger

	hangsAfter time.Duration // for a request in hand; 0: the default
	lookEvery  time.Duration // between looks at the streams; 0: the default
	overdue    time.Duration // for a change in the outbox; 0: the default
}

// Upper bounds of a [Config].
const (
	MaxBatch    = 2048 // limits a transaction, and the lists in one statement
	MaxReplicas = 5    // NATS's own limit
)

const (
	defaultBatch = 1024
	// batchesInHand is how many batches are handed over at a time: the next is decided while one is
	// committed.
	batchesInHand = 2
	// ensureWithin is how long the broker may take to create the streams.
	ensureWithin = 5 * time.Second
)

// Registry is one replica of the App Registry. Replicas share the database and the durable.
type Registry struct {
	cfg         Config
	js          jetstream.JetStream
	relay       *outbox.Relay
	queue       *queue.Queue
	intake      *intake
	deadLetters *letterBox
	guard       *restore.Guard
	watch       *provision.Watch
	Lookup      *Lookup

	inHand *consume.InHand

	deciding sync.Mutex // one batch at a time: new requests, or a dead letter again
	// serving: the streams are there, lookups are answered, requests are taken.
	serving atomic.Bool
	// refused: why a broker that is there refuses the registry at the start; nil: not known.
	refused atomic.Pointer[string]
}

// New returns a registry that is ready to run.
func New(cfg Config) (*Registry, error) {
	var err error
	if cfg.Policy, err = cfg.Policy.WithDefaults(); err != nil {
		return nil, err
	}
	if cfg.Batch <= 0 {
		cfg.Batch = defaultBatch
	}
	cfg.Batch = min(cfg.Batch, MaxBatch)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Committed == nil {
		cfg.Committed = func([]events.Invalidation) {}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	js, err := jetstream.New(cfg.Conn, outbox.JetStreamOptions(MaxBatch)...)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	r := &Registry{cfg: cfg, js: js}
	m := newMetrics(cfg.Metrics)
	trust, err := events.NewTrustUntil(cfg.Policy.Origin, append([]events.TrustedKey{{PublicKey: cfg.Key.Public()}}, cfg.Trust...)...)
	if err != nil {
		return nil, fmt.Errorf("trust the registry's own keys: %w", err)
	}
	r.guard = restore.New(restore.Config{
		Ledger: cfg.Store.ledger, Sessions: cfg.Store.db, JetStream: js, Trust: trust, Log: cfg.Log, Metrics: cfg.Metrics,
	})
	r.watch = provision.NewWatch(provision.Config{
		JetStream: js, Replicas: cfg.Replicas, Limits: provision.Limits(cfg.Streams), Trust: trust, Expect: r.guard.Expect, Log: cfg.Log, Every: cfg.lookEvery,
	})
	r.inHand = consume.NewInHand("requests", cfg.Store.db.Place(), stageLoad, cfg.hangsAfter, cfg.Log)
	cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_oldest_in_hand_seconds",
		Help: "How long the oldest request in hand has been worked on while none was finished; 0: none is in hand.",
	}, r.inHand.Seconds), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_requests_waiting", Help: "Requests that wait at the broker to be delivered to a registry, according to its last answer.",
	}, func() float64 { return float64(r.watch.Deliveries.Waiting()) }))
	if db := cfg.Store.db; db.Engine() == sqldb.SQLite {
		cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "omi_registry_sqlite_log_bytes", Help: "Size of SQLite's log, the file next to the database whose name ends in -wal.",
		}, func() float64 { return float64(db.LogBytes()) }))
	}
	r.relay = outbox.New(outbox.Config{
		JetStream: js, Batches: cfg.PublishBatches, Outbox: cfg.Store.outbox, Guard: r.guard,
		Metrics: cfg.Metrics, Now: cfg.Now, Log: cfg.Log, Overdue: cfg.overdue,
	})
	r.queue = queue.New(queue.Config{
		Bound: cfg.Store.ledger.Bound, MasterKeys: cfg.Store.ledger.Masters, Conn: cfg.Conn, Metrics: cfg.Metrics, Results: m.requests, Log: cfg.Log,
	})
	r.intake = &intake{
		policy: cfg.Policy, key: cfg.Key, trust: trust, own: trust.TrustedKeys(), store: cfg.Store, publish: r.relay.Enqueue, guard: r.guard, committed: cfg.Committed,
		told: (&receipts{js: js, trust: trust}).ofAll,
		log:  cfg.Log, metrics: m, now: cfg.Now, batch: cfg.Batch, memory: newMemory(), inHand: r.inHand,
		charge: r.queue.Charge,
	}
	r.deadLetters = &letterBox{letters: cfg.Store.letters, handle: r.handle, log: cfg.Log, metrics: m, now: cfg.Now}
	r.Lookup = newLookup(cfg, js, r.guard)
	r.Lookup.propagation.trust, r.Lookup.receipts.trust = trust, trust
	return r, nil
}

// Run serves requests, the outbox and lookups over NATS until ctx ends. It waits for a broker that
// is not there, and returns an error only if waiting can't help.
func (r *Registry) Run(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil || ctx.Err() != nil {
		if ctx.Err() != nil {
			return nil // ctx has ended: that is no error
		}
		return err
	}
	service, err := r.Lookup.register(ctx, r.cfg.Conn)
	if err != nil {
		return err
	}
	defer func() { _ = service.Stop() }() // fails only if the connection is gone

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var relaying, working sync.WaitGroup
	// The relay ends after its queue is empty, so that committed changes are published before a
	// shutdown.
	relaying.Go(func() { r.relay.Run(ctx) })
	working.Go(func() { r.deadLetters.run(ctx) })
	working.Go(func() { r.guard.Run(ctx) })
	working.Go(func() { r.followMasters(ctx) })
	var other, lost error // another policy, or other streams: this registry can't go on with them
	working.Go(func() {
		if other = r.followPolicy(ctx); other != nil {
			stop()
		}
	})
	working.Go(func() {
		if lost = r.watch.Run(ctx); lost != nil {
			stop()
		}
	})
	r.cfg.Log.Info("registry is ready", "origin", r.cfg.Policy.Origin, "public_key", r.cfg.Key.Public().String())
	err = consume.Run(ctx, consume.Config[queue.Request]{
		Open: func(ctx context.Context) (consume.Source[queue.Request], error) {
			consumer, created, until, err := r.watch.Open(ctx)
			if err != nil {
				return nil, err
			}
			r.serving.Store(true)
			return r.queue.Open(until, consumer, created)
		},
		Handle:      r.handle,
		SetAside:    r.deadLetters.keep,
		Unavailable: unavailable,
		About:       serviceOf,
		Batch:       batchesInHand * r.cfg.Batch,
		Conn:        r.cfg.Conn,
		InHand:      r.inHand,
		Log:         r.cfg.Log,
	})
	stop()
	working.Wait() // first, because dead letters are handed to the relay too
	r.relay.Close()
	relaying.Wait()
	return cmp.Or(err, other, lost)
}

// prepare runs everything that must come before the first request. It changes a recorded policy
// last: no replica should adopt the policy of a registry that can't start.
func (r *Registry) prepare(ctx context.Context) error {
	if err := r.ensureStreams(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	if !r.cfg.ChangePolicy {
		if err := r.agreeOnPolicy(ctx); err != nil {
			return err
		}
	}
	if err := r.cfg.Store.admin.ReserveOwn(ctx, r.cfg.Key.Public(), r.intake.own, r.cfg.Log); err != nil {
		return err
	}
	if err := r.guard.Compare(ctx); err != nil || !r.cfg.ChangePolicy {
		return err
	}
	return r.changePolicy(ctx)
}

// serviceOf names the service that a request is about: the key that one request brings may sign the
// next.
func serviceOf(m *queue.Message) string {
	for _, prefix := range []string{events.RotationSubject, events.BindingSubject, events.RevocationSubject} {
		if target, ok := strings.CutPrefix(m.Subject, prefix); ok {
			return target
		}
	}
	return m.Subject
}

// unavailable reports whether an error itself says that no request is to blame for it.
func unavailable(err error) bool {
	return errors.Is(err, ErrComparing) || errors.Is(err, errReceipts) || sqldb.Transient(err)
}

func (r *Registry) handle(ctx context.Context, messages []*queue.Message) error {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	return r.intake.handle(ctx, messages)
}

// Ready returns nil once requests and lookups are served, and [ErrNotReady] before. It returns
// [ErrNoSpace] while nothing can be published because the broker has no space. It stays nil while
// the broker is away.
func (r *Registry) Ready() error {
	if !r.serving.Load() {
		if why := r.refused.Load(); why != nil {
			return fmt.Errorf("%w: the broker %s", ErrNotReady, *why)
		}
		return ErrNotReady
	}
	return r.relay.SpaceErr()
}

// ensureStreams creates the streams. It tries until the broker answers.
func (r *Registry) ensureStreams(ctx context.Context) error {
	why := refusal.Teller{Log: r.cfg.Log}
	wait := func(err error, _ time.Duration) {
		err = refusal.Behind(err, r.js.Conn())
		why.Tell(err)
		r.refused.Store(nil)
		if reason, refused := refusal.Of(err); refused {
			r.refused.Store(&reason.What)
		}
	}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		tried, cancel := context.WithTimeout(ctx, ensureWithin)
		defer cancel()
		return struct{}{}, r.watch.Make(tried)
	}, backoff.WithMaxElapsedTime(0), backoff.WithNotify(wait))
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// Errors of what the registry needs at the broker.
var (
	// ErrStreamMeaning means that a stream or durable exists and doesn't mean what docs/protocol.md
	// §4 says. Changing it could lose messages, so a person must decide.
	ErrStreamMeaning = provision.ErrStreamMeaning
	// ErrStreamRoom means that the broker can't reserve what the operator says that a stream is to
	// have.
	ErrStreamRoom = provision.ErrStreamRoom
	// ErrOrigin means that this registry has signed the last event of the stream under another
	// domain name. A reader of the stream believes one name. Under the new name all earlier events
	// would count for nothing, and readers that know the old name would ignore new ones.
	ErrOrigin = provision.ErrOrigin
	// ErrSealed means that a stream takes no messages any more.
	ErrSealed = provision.ErrSealed
	// ErrPaused means that the durable delivers nothing until a time that an operator gave.
	ErrPaused = provision.ErrPaused
	// ErrNotReady means that Run does not serve requests and lookups yet.
	ErrNotReady = provision.ErrNotReady
)

// StreamLimits bounds the space that the streams take at the broker, so that no account can take
// all of it. Where a number is 0, a stream keeps the bound that it has, and gets the default if it
// has none.
type StreamLimits struct {
	// Waiting is how many requests of one kind may wait for one service; the broker refuses more.
	// Default [streams.RequestsWaiting].
	Waiting int64
	// RequestBytes is the size of the stream of requests: the broker refuses what doesn't fit.
	// ReceiptBytes is that of the receipts: the oldest go. Each is 1 GiB by default, or less: at
	// most a quarter of what the broker can reserve when the bound is set.
	RequestBytes, ReceiptBytes int64
	// EventBytes is the size of the stream of events. By default it has no bound: only the registry
	// writes there, and what the two others can't take is left for it.
	EventBytes int64
}

// EnsureStreams creates the streams of docs/protocol.md §4 that are missing, and applies changed
// limits to those that exist. Choices of the operator that the contract leaves open (replicas,
// placement, size) stay. replicas is for streams that are created here; 0 means 1.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, replicas int) error {
	return EnsureStreamsWithin(ctx, js, replicas, StreamLimits{})
}

// EnsureStreamsWithin is [EnsureStreams] with the operator's limits.
func EnsureStreamsWithin(ctx context.Context, js jetstream.JetStream, replicas int, limits StreamLimits) error {
	return provision.Ensure(ctx, js, replicas, provision.Limits(limits))
}
