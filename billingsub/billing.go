// Package billingsub is the Billing Service's side of key rotation: whose key was this then (docs/protocol.md §8.3).
//
// It applies the registry's invalidations as they come, and keeps every key's interval of validity for ever. A usage
// record that was signed before a rotation and arrives after it belongs to the same service; one that was signed with a
// key after that key's end belongs to nobody.
//
// The stream keeps the last 64 events of each service. Who was away for longer, or is new, has a gap in what it knows
// of that service, and fills it from the registry's history (§7.2). Until it is filled, a question that it could touch
// is not answered by a guess: the caller is told to try again.
package billingsub

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/lookup"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/streams"
)

// Registry is asked for what the stream no longer holds.
type Registry interface {
	// HistoryPart returns the keys that a service had after a sequence, as many as come at once.
	HistoryPart(ctx context.Context, target events.Target, after int64) (events.ServiceHistory, error)
	// Key returns whose key this is.
	Key(ctx context.Context, key events.PublicKey) (events.KeyRecord, error)
}

// Config says what a Billing Service listens to. JetStream, DatabaseURL, Trust and Log are required.
type Config struct {
	JetStream jetstream.JetStream
	// DatabaseURL names the database, as internal/sqldb takes it: sqlite:PATH, or postgres://…
	DatabaseURL string
	// Durable names the consumer on the invalidation stream. Processes that share a database share a durable; one with another
	// database ends with an error, and needs a durable of its own. Default "billingsub".
	Durable string
	Trust   events.Trust
	// Registry is asked for histories, and about keys that a gap may hold. Default: the registry itself, over the connection of JetStream.
	Registry Registry
	// LookupTimeout bounds one question to the registry, and so how long Attribute may wait for one. Default 2 s.
	LookupTimeout time.Duration
	// Applied is told of each batch of events once they are committed. Nil: nobody asks.
	Applied func([]events.Invalidation)
	Log     *slog.Logger
	// Metrics is where metrics are registered. Nil: nowhere.
	Metrics prometheus.Registerer
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

const defaultLookupTimeout = 2 * time.Second

func (c Config) withDefaults() Config {
	c.Durable = cmp.Or(c.Durable, streams.BillingDurable)
	c.LookupTimeout = cmp.Or(c.LookupTimeout, defaultLookupTimeout)
	if c.Registry == nil {
		c.Registry = &lookup.Current{Conn: c.JetStream.Conn()}
	}
	if c.Applied == nil {
		c.Applied = func([]events.Invalidation) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Billing is a Billing Service.
type Billing struct {
	conn       *nats.Conn
	log        *slog.Logger
	store      *subscriber.Store
	subscriber *subscriber.Subscriber
	filler     *filler
	asking     asking
}

// New opens the database.
func New(ctx context.Context, cfg Config) (*Billing, error) {
	cfg = cfg.withDefaults()
	store, err := subscriber.OpenStore(ctx, cfg.DatabaseURL, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("start the Billing Service: %w", err)
	}
	b := &Billing{conn: cfg.JetStream.Conn(), log: cfg.Log, store: store, filler: newFiller(store, cfg), asking: newAsking(cfg)}
	b.subscriber, err = subscriber.New(subscriber.Config{
		JetStream: cfg.JetStream, Durable: cfg.Durable, Trust: cfg.Trust, Store: store, Log: cfg.Log,
		Applied: func(_ context.Context, batch, _ []events.Invalidation) error {
			b.filler.wake()
			cfg.Applied(batch)
			return nil
		},
		Metrics: cfg.Metrics, Now: cfg.Now,
	})
	if err != nil {
		_ = store.Close() // the first error says more
		return nil, fmt.Errorf("start the Billing Service: %w", err)
	}
	if own, ok := cfg.Registry.(*lookup.Current); ok {
		own.Trust = b.subscriber.Trust
	}
	return b, nil
}

// Run applies invalidations, fills gaps and answers over NATS until ctx ends, and then returns nil. While the broker, the
// database or the registry is away it waits.
func (b *Billing) Run(ctx context.Context) error {
	if err := b.subscriber.Hold(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	service, err := api.Register(ctx, b.conn, b.log, api.Service{
		Name: "omi-billing", Version: "1.0.0", Description: "The Billing Service: whose key was this then?",
	}, b.endpoints()...)
	if err != nil {
		return fmt.Errorf("answer over NATS: %w", err)
	}
	defer func() { _ = service.Stop() }() // fails only if the connection is gone
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { b.filler.run(ctx) })
	err = b.subscriber.Run(ctx)
	stop()
	running.Wait()
	return err
}

// Close closes the database, after Run has returned.
func (b *Billing) Close() error { return b.store.Close() }

// Ready returns nil once the stream has been read up to the time at which this process started.
func (b *Billing) Ready() error { return b.subscriber.Ready() }

// SetTrust has it believe the registry by these keys, from soon on: it first applies what it had set aside and believes now.
func (b *Billing) SetTrust(trust events.Trust) {
	b.subscriber.SetTrust(trust)
	b.filler.wake()
}

// Remarks says what is set aside, lines for a person.
func (b *Billing) Remarks() string { return b.subscriber.Remarks() }

// Errors of [Billing.Checks], for [errors.Is].
var (
	// ErrDegraded means that Billing answers in spite of the error.
	ErrDegraded = health.ErrDegraded
	// ErrRestart means that only a restart of the process helps.
	ErrRestart = health.ErrRestart
)

// Checks returns the names of what Billing needs, each with a check, for a readiness probe. While
// the broker is unavailable the error is [ErrDegraded]: Billing answers from its database.
//
// A check runs until it knows, or its context ends, so give it a deadline. The text of an error is
// fit for strangers.
func (b *Billing) Checks() iter.Seq2[string, func(context.Context) error] {
	return health.Checks(b.subscriber.Parts())
}

// Routes returns the handler of POST /v1/attribute (docs/protocol.md §8.3), by its pattern for
// [http.ServeMux].
func (b *Billing) Routes() map[string]http.Handler { return api.Routes(b.log, b.endpoints()...) }

func (b *Billing) endpoints() []api.Endpoint {
	return []api.Endpoint{{
		Name: "attribute", Subject: events.BillingAttributeSubject, Pattern: "POST /v1/attribute",
		Handle: func(ctx context.Context, c api.Call) (api.Answer, error) {
			q, err := events.ParseAttributeQuery(c.Body)
			if err != nil {
				return api.Answer{}, err
			}
			answer, err := b.Attribute(ctx, q)
			if err != nil {
				return api.Answer{}, err
			}
			return api.JSON(answer)
		},
	}}
}
