package billingsub

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/coreservice"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/streams"
)

// Errors of New and Run that an operator must correct.
var (
	// ErrURL means that the database URL can't be used, or that the database belongs to another
	// process.
	ErrURL = sqldb.ErrURL
	// ErrInUse means that another process, or another database, has the durable.
	ErrInUse = subscriber.ErrInUse
	// ErrDurable means that the durable exists and was made for another purpose.
	ErrDurable = subscriber.ErrDurable
)

// Registry answers questions about what the stream no longer holds.
type Registry interface {
	// HistoryPart returns the keys that a service had after a sequence, as many as fit into one
	// answer.
	HistoryPart(ctx context.Context, target events.Target, after int64) (events.ServiceHistory, error)
	// Key returns the service that a key belongs to.
	Key(ctx context.Context, key events.PublicKey) (events.KeyRecord, error)
}

// Config configures a Billing Service. JetStream, DatabaseURL, Trust and Log are required.
type Config struct {
	JetStream jetstream.JetStream
	// DatabaseURL names the database: sqlite:PATH, or postgres://… for PostgreSQL and CockroachDB.
	DatabaseURL string
	// Durable names the consumer on the invalidation stream. Processes that share a database share
	// a durable. If a process with another database uses the same durable, Run returns [ErrInUse].
	// Default "billingsub".
	Durable string
	Trust   events.Trust
	// Registry answers questions about histories, and about keys that a gap may hold. Default: the
	// registry itself, over the connection of JetStream.
	Registry Registry
	// LookupTimeout limits one question to the registry, and so the time that Attribute may wait
	// for one. Default 2 s.
	LookupTimeout time.Duration
	// Applied is called with each batch of events after the batch is committed. Nil disables the
	// callback.
	Applied func([]events.Invalidation)
	Log     *slog.Logger
	// Metrics is where Billing registers its metrics. Nil: nowhere.
	Metrics prometheus.Registerer
	// Now is the clock. Default [time.Now].
	Now func() time.Time
}

const defaultLookupTimeout = 2 * time.Second

// Billing is a Billing Service. Its methods may be called concurrently, except for Close.
type Billing struct {
	core   *coreservice.Service
	filler *filler
	asking asking
}

// New opens the database. It waits for a database server that is not up yet, until ctx ends.
func New(ctx context.Context, cfg Config) (*Billing, error) {
	b := &Billing{}
	var err error
	b.core, err = coreservice.Open(ctx, coreservice.Config{
		DatabaseURL: cfg.DatabaseURL, Owner: sqldb.Billing,
		Subscriber: subscriber.Config{
			JetStream: cfg.JetStream, Durable: cmp.Or(cfg.Durable, streams.BillingDurable), Trust: cfg.Trust, Log: cfg.Log,
			Applied: func(_ context.Context, batch, _ []events.Invalidation) error {
				b.filler.wake()
				if cfg.Applied != nil {
					cfg.Applied(batch)
				}
				return nil
			},
			Metrics: cfg.Metrics, Now: cfg.Now,
		},
		API:       api.Service{Name: "omi-billing", Description: "The Billing Service: whose key was this then?"},
		Endpoints: b.endpoints(),
	})
	if err != nil {
		return nil, fmt.Errorf("start the Billing Service: %w", err)
	}
	if cfg.Registry == nil {
		cfg.Registry = b.core.Registry()
	}
	cfg.LookupTimeout = cmp.Or(cfg.LookupTimeout, defaultLookupTimeout)
	b.filler, b.asking = newFiller(b.core.Store, cfg), newAsking(cfg)
	return b, nil
}

// Run applies invalidations, fills gaps and answers over NATS until ctx ends, and then returns nil.
// It waits while the broker, the database or the registry is unavailable. It returns an error only
// if waiting can't help.
func (b *Billing) Run(ctx context.Context) error { return b.core.Run(ctx, b.filler.run) }

// Close closes the database. Call it after Run has returned.
func (b *Billing) Close() error { return b.core.Close() }

// Ready returns nil once Billing has read the stream up to the time at which the process started.
func (b *Billing) Ready() error { return b.core.Ready() }

// SetTrust changes the keys by which Billing believes the registry. The change takes effect soon
// after the call: Billing first applies the messages that it had set aside and that are trusted
// now.
func (b *Billing) SetTrust(trust events.Trust) {
	b.core.SetTrust(trust)
	b.filler.wake()
}

// Remarks describes the messages that were set aside, in lines for a person.
func (b *Billing) Remarks() string { return b.core.Remarks() }

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
	return health.Checks(b.core.Parts())
}

// Routes returns the handler of POST /v1/attribute (docs/protocol.md §8.3), by its pattern for
// [http.ServeMux].
func (b *Billing) Routes() map[string]http.Handler { return b.core.Routes() }

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
