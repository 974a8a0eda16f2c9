// Package authsub is the Auth Provider's side of key rotation: who may pass now (docs/protocol.md §8.2).
//
// It applies the registry's invalidations as they come, keeps what they say in a database of its own, and the keyrings
// that they make in memory, from which [Auth.Verify] answers (internal/verify).
package authsub

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/lookup"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/verify"
	"omiappreg.org/keyrotation/streams"
)

// ErrUnknownService is what a [Registry] returns for a service that was never bound.
var ErrUnknownService = lookup.ErrUnknownService

// Registry is asked about a service whose newest event may not have come yet.
type Registry interface {
	// ServiceRecord returns what the registry knows of a service now, or ErrUnknownService.
	ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error)
}

// Config says what an Auth Provider listens to. JetStream, DatabaseURL, Trust and Log are required.
type Config struct {
	JetStream jetstream.JetStream
	// DatabaseURL names the database, as internal/sqldb takes it: sqlite:PATH, or postgres://…
	DatabaseURL string
	// Durable and Instance name the consumer on the invalidation stream, <durable>-<instance>. Each Auth process has one of its
	// own, since each keeps all keyrings in its memory; they may share a database. A second process with the same name ends
	// with an error. Default "authsub", and the host's name.
	Durable, Instance string
	// ForgetAfter is after which time without a connected process the broker deletes the consumer: one that is gone for good
	// holds up the rotations of all services until then. Default 10 minutes.
	ForgetAfter time.Duration
	Trust       events.Trust
	// Registry is asked about unknown keys. Default: the registry itself, over the connection of JetStream.
	Registry Registry
	// LookupTimeout bounds one question to the registry, and so how long Verify may take. Default 1 s.
	LookupTimeout time.Duration
	// LookupMemory is for how long the registry's answer about a service, or that there is none, is not asked for
	// again. Default 1 s.
	LookupMemory time.Duration
	// LookupMemorySize is how many such answers are kept. Default 65,536.
	LookupMemorySize int
	// LookupsInFlight is how many questions to the registry are open at a time; beyond that, Verify answers from what
	// is known. Default 32.
	LookupsInFlight int
	// Applied is told of each batch of events once they count: committed, and in memory. Nil: nobody asks.
	Applied func([]events.Invalidation)
	Log     *slog.Logger
	// Metrics is where metrics are registered. Nil: nowhere.
	Metrics prometheus.Registerer
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// DefaultForgetAfter is [Config.ForgetAfter] where none is given.
const DefaultForgetAfter = 10 * time.Minute

func (c Config) withDefaults() (Config, error) {
	c.Durable = cmp.Or(c.Durable, streams.AuthDurable)
	c.ForgetAfter = cmp.Or(c.ForgetAfter, DefaultForgetAfter)
	if c.Instance == "" {
		name, err := subscriber.HostInstance()
		if err != nil {
			return c, err
		}
		c.Instance = name
	}
	if c.Registry == nil {
		c.Registry = &lookup.Current{Conn: c.JetStream.Conn()}
	}
	if c.Applied == nil {
		c.Applied = func([]events.Invalidation) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, subscriber.CheckInstance(c.Instance)
}

// Auth is an Auth Provider.
type Auth struct {
	conn       *nats.Conn
	log        *slog.Logger
	observer   func([]events.Invalidation)
	store      *subscriber.Store
	subscriber *subscriber.Subscriber
	memory     *verify.Memory
}

// New opens the database, and loads the keyrings of all services into memory.
func New(ctx context.Context, cfg Config) (*Auth, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("start the Auth Provider: %w", err)
	}
	store, err := subscriber.OpenAuthStore(ctx, cfg.DatabaseURL, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("start the Auth Provider: %w", err)
	}
	a := &Auth{conn: cfg.JetStream.Conn(), log: cfg.Log, observer: cfg.Applied, store: store}
	if err := a.setUp(ctx, cfg); err != nil {
		_ = store.Close() // the first error says more
		return nil, fmt.Errorf("start the Auth Provider: %w", err)
	}
	return a, nil
}

func (a *Auth) setUp(ctx context.Context, cfg Config) (err error) {
	a.memory, err = verify.New(verify.Config{
		Registry: cfg.Registry, LookupTimeout: cfg.LookupTimeout, LookupMemory: cfg.LookupMemory,
		LookupMemorySize: cfg.LookupMemorySize, LookupsInFlight: cfg.LookupsInFlight, EndedKeys: a.store.NewestKeys,
		Log: cfg.Log, Now: cfg.Now,
	})
	if err != nil {
		return err
	}
	a.subscriber, err = subscriber.New(subscriber.Config{
		JetStream: cfg.JetStream, Durable: streams.InstanceDurable(cfg.Durable, cfg.Instance), Instance: cfg.Instance,
		ForgetAfter: cfg.ForgetAfter, Trust: cfg.Trust, Store: a.store, Applied: a.applied,
		Log: cfg.Log, Metrics: cfg.Metrics, Now: cfg.Now,
	})
	if err != nil {
		return err
	}
	if own, ok := cfg.Registry.(*lookup.Current); ok {
		own.Trust = a.subscriber.Trust
	}
	began := cfg.Now()
	var services int
	err = sqldb.Await(ctx, cfg.Log, func() error {
		return a.store.Read(ctx, func() (err error) { // what is loaded twice is as it was the last time
			services, err = a.load(ctx)
			return err
		})
	})
	if err != nil {
		return err
	}
	cfg.Log.InfoContext(ctx, "loaded the keyrings", "services", services, "took", cfg.Now().Sub(began).String())
	return nil
}

// loadedAtOnce is how many services go from the one that reads them to the one that keeps them.
const loadedAtOnce = 1024

// load takes all keyrings into memory, and returns how many there are. One core reads them, another one packs them.
func (a *Auth) load(ctx context.Context) (services int, err error) {
	read := make(chan []subscriber.Service, 2)
	go func() {
		defer close(read)
		var batch []subscriber.Service
		for service, broken := range a.store.Keyrings(ctx) {
			if err = broken; err != nil {
				return
			}
			if batch = append(batch, service); len(batch) == loadedAtOnce {
				read <- batch
				batch = make([]subscriber.Service, 0, loadedAtOnce)
			}
		}
		read <- batch
	}()
	for batch := range read {
		for i := range batch {
			a.memory.Load(batch[i].Target, batch[i].Keyring, batch[i].Sequence)
		}
		services += len(batch)
	}
	return services, err
}

// Run applies invalidations and answers over NATS until ctx ends, and then returns nil. While the broker or the database
// is away it waits; Verify goes on answering.
func (a *Auth) Run(ctx context.Context) error {
	if err := a.subscriber.Hold(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	service, err := api.Register(ctx, a.conn, a.log, api.Service{
		Name: "omi-auth", Version: "1.0.0", Description: "The Auth Provider: is this signature good now?",
	}, a.endpoints()...)
	if err != nil {
		return fmt.Errorf("answer over NATS: %w", err)
	}
	defer func() { _ = service.Stop() }() // fails only if the connection is gone
	return a.subscriber.Run(ctx)
}

// Close closes the database, after Run has returned.
func (a *Auth) Close() error { return a.store.Close() }

// Ready returns nil once the stream has been read up to the time at which this process started. It stays nil while the
// broker is away: answers then grow older, as their AsOf says.
func (a *Auth) Ready() error { return a.subscriber.Ready() }

// SetTrust has it believe the registry by these keys, from soon on: it first applies what it had set aside and believes now.
func (a *Auth) SetTrust(trust events.Trust) { a.subscriber.SetTrust(trust) }

// Remarks says what is set aside, lines for a person.
func (a *Auth) Remarks() string { return a.subscriber.Remarks() }

// Errors of [Auth.Checks], for [errors.Is].
var (
	// ErrDegraded means that Auth answers in spite of the error.
	ErrDegraded = health.ErrDegraded
	// ErrRestart means that only a restart of the process helps.
	ErrRestart = health.ErrRestart
)

// Checks returns the names of what Auth needs, each with a check, for a readiness probe. While the
// database or the broker is unavailable the error is [ErrDegraded]: Auth answers from memory, and
// its answers grow older. Don't take it out of service for that, which would end the answers, nor
// restart it, because a process that starts needs the database.
//
// A check runs until it knows, or its context ends, so give it a deadline. The text of an error is
// fit for strangers.
func (a *Auth) Checks() iter.Seq2[string, func(context.Context) error] {
	return health.Checks(a.subscriber.PartsFromMemory())
}

// Verify says whether a signature is good now (docs/protocol.md §8.2).
func (a *Auth) Verify(ctx context.Context, q events.VerifyQuery) events.VerifyAnswer {
	asOf := a.subscriber.AsOf() // before the keys are looked at: they are at least as new
	answer, _ := a.memory.Verify(ctx, q)
	answer.AsOf = asOf
	return answer
}

// Routes returns the handler of POST /v1/verify (docs/protocol.md §8.2), by its pattern for
// [http.ServeMux].
func (a *Auth) Routes() map[string]http.Handler { return api.Routes(a.log, a.endpoints()...) }

func (a *Auth) endpoints() []api.Endpoint {
	return []api.Endpoint{{
		Name: "verify", Subject: events.AuthVerifySubject, Pattern: "POST /v1/verify",
		Handle: func(ctx context.Context, c api.Call) (api.Answer, error) {
			q, err := events.ParseVerifyQuery(c.Body)
			if err != nil {
				return api.Answer{}, err
			}
			return api.JSON(a.Verify(ctx, q))
		},
	}}
}

// applied joins a committed batch to the memory. What had no effect now, and says something new all the same, is no authority:
// another event with its nonce may have had one. The database knows.
func (a *Auth) applied(ctx context.Context, batch, fresh []events.Invalidation) error {
	a.memory.Apply(fresh)
	next := 0 // of fresh, which has the batch's order
	for i := range batch {
		e := &batch[i]
		if next < len(fresh) && fresh[next].Nonce == e.Nonce {
			next++
			continue
		}
		if a.memory.Has(e) {
			continue
		}
		service, found, err := a.store.KeyringOf(ctx, e.Target)
		if err != nil {
			return fmt.Errorf("read a service again: %w", err)
		}
		if found {
			a.memory.Join(e.Target, service.Keyring, service.Sequence)
		}
	}
	a.observer(batch)
	return nil
}
