package authsub

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
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/verify"
	"omiappreg.org/keyrotation/streams"
)

// ErrUnknownService is the error that a [Registry] returns for a service that was never bound.
var ErrUnknownService = registryclient.ErrUnknownService

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

// Registry answers questions about a service whose newest event may not have arrived yet.
type Registry interface {
	// ServiceRecord returns what the registry knows about a service now, or [ErrUnknownService].
	ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error)
}

// Config configures an Auth Provider. JetStream, DatabaseURL, Trust and Log are required.
type Config struct {
	JetStream jetstream.JetStream
	// DatabaseURL names the database: sqlite:PATH, or postgres://… for PostgreSQL and CockroachDB.
	DatabaseURL string
	// Durable and Instance name the consumer on the invalidation stream, <durable>-<instance>. Each
	// Auth process needs its own, because each keeps all keyrings in memory; several processes may
	// share a database. If a second process uses the same name, Run returns [ErrInUse]. Defaults:
	// "authsub", and the name of the host.
	Durable, Instance string
	// ForgetAfter is the time without a connected process after which the broker deletes the
	// consumer. A process that never returns delays the rotations of all services until then.
	// Default 10 minutes.
	ForgetAfter time.Duration
	Trust       events.Trust
	// Registry answers questions about unknown keys. Default: the registry itself, over the
	// connection of JetStream.
	Registry Registry
	// LookupTimeout limits one question to the registry, and so the time that Verify may take.
	// Default 1 s.
	LookupTimeout time.Duration
	// LookupMemory is how long Auth remembers the registry's answer about a service, including the
	// answer that there is none. Default 1 s.
	LookupMemory time.Duration
	// LookupMemorySize is the number of such answers that Auth remembers. Default 65,536.
	LookupMemorySize int
	// LookupsInFlight is the number of questions that may be open at the registry at a time. Beyond
	// that, Verify answers from what it knows. Default 32.
	LookupsInFlight int
	// Applied is called with each batch of events after the batch is committed and in memory. Nil
	// disables the callback.
	Applied func([]events.Invalidation)
	Log     *slog.Logger
	// Metrics is where Auth registers its metrics. Nil: nowhere.
	Metrics prometheus.Registerer
	// Now is the clock. Default [time.Now].
	Now func() time.Time
}

// DefaultForgetAfter is the default of [Config.ForgetAfter].
const DefaultForgetAfter = 10 * time.Minute

func (c Config) withDefaults() (Config, error) {
	c.Durable = cmp.Or(c.Durable, streams.AuthDurable)
	c.ForgetAfter = cmp.Or(c.ForgetAfter, DefaultForgetAfter)
	if c.Instance == "" {
		name, err := coreservice.HostInstance()
		if err != nil {
			return c, err
		}
		c.Instance = name
	}
	return c, coreservice.CheckInstance(c.Instance)
}

// Auth is an Auth Provider. Its methods may be called concurrently, except for Close.
type Auth struct {
	core     *coreservice.Service
	memory   *verify.Memory
	observer func([]events.Invalidation) // may be nil
}

// New opens the database and loads the keyrings of all services into memory. It waits for a
// database server that is not up yet, until ctx ends.
func New(ctx context.Context, cfg Config) (*Auth, error) {
	a := &Auth{observer: cfg.Applied}
	if err := a.open(ctx, cfg); err != nil {
		return nil, fmt.Errorf("start the Auth Provider: %w", err)
	}
	return a, nil
}

func (a *Auth) open(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	a.core, err = coreservice.Open(ctx, coreservice.Config{
		DatabaseURL: cfg.DatabaseURL, Owner: sqldb.Auth,
		Subscriber: subscriber.Config{
			JetStream: cfg.JetStream, Durable: streams.InstanceDurable(cfg.Durable, cfg.Instance), Instance: cfg.Instance,
			ForgetAfter: cfg.ForgetAfter, Trust: cfg.Trust, Applied: a.applied, Log: cfg.Log, Metrics: cfg.Metrics, Now: cfg.Now,
		},
		API:       api.Service{Name: "omi-auth", Description: "The Auth Provider: is this signature good now?"},
		Endpoints: a.endpoints(),
	})
	if err != nil {
		return err
	}
	if err := a.remember(ctx, cfg); err != nil {
		_ = a.core.Close() // the first error says more
		return err
	}
	return nil
}

// remember loads the memory from the database.
func (a *Auth) remember(ctx context.Context, cfg Config) (err error) {
	if cfg.Registry == nil {
		cfg.Registry = a.core.Registry()
	}
	a.memory, err = verify.New(verify.Config{
		Registry: cfg.Registry, LookupTimeout: cfg.LookupTimeout, LookupMemory: cfg.LookupMemory,
		LookupMemorySize: cfg.LookupMemorySize, LookupsInFlight: cfg.LookupsInFlight, EndedKeys: a.core.Store.NewestKeys,
		Log: cfg.Log, Now: cfg.Now,
	})
	if err != nil {
		return err
	}
	began, services := time.Now(), 0
	err = sqldb.Await(ctx, cfg.Log, func() error {
		return a.core.Store.Read(ctx, func() (err error) { // a repeated read gives the same keyrings
			services, err = a.load(ctx)
			return err
		})
	})
	if err != nil {
		return err
	}
	cfg.Log.InfoContext(ctx, "loaded the keyrings", "services", services, "took", time.Since(began).String())
	return nil
}

// loadedAtOnce is the number of services that the reader hands over at a time.
const loadedAtOnce = 1024

// load reads all keyrings into memory and returns their number. One core reads them, and another
// one packs them.
func (a *Auth) load(ctx context.Context) (services int, err error) {
	read := make(chan []storage.Service, 2)
	go func() {
		defer close(read)
		var batch []storage.Service
		for service, broken := range a.core.Store.Keyrings(ctx) {
			if err = broken; err != nil {
				return
			}
			if batch = append(batch, service); len(batch) == loadedAtOnce {
				read <- batch
				batch = make([]storage.Service, 0, loadedAtOnce)
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

// Run applies invalidations and answers over NATS until ctx ends, and then returns nil. It waits
// while the broker or the database is unavailable, and Verify goes on answering. It returns an
// error only if waiting can't help.
func (a *Auth) Run(ctx context.Context) error { return a.core.Run(ctx) }

// Close closes the database. Call it after Run has returned.
func (a *Auth) Close() error { return a.core.Close() }

// Ready returns nil once Auth has read the stream up to the time at which the process started. It
// stays nil while the broker is unavailable; answers then grow older, as their AsOf says.
func (a *Auth) Ready() error { return a.core.Ready() }

// SetTrust changes the keys by which Auth believes the registry. The change takes effect soon after
// the call: Auth first applies the messages that it had set aside and that are trusted now.
func (a *Auth) SetTrust(trust events.Trust) { a.core.SetTrust(trust) }

// Remarks describes the messages that were set aside, in lines for a person.
func (a *Auth) Remarks() string { return a.core.Remarks() }

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
	return health.Checks(a.core.PartsFromMemory())
}

// Verify says whether a signature is good now (docs/protocol.md §8.2). It takes LookupTimeout at
// most.
func (a *Auth) Verify(ctx context.Context, q events.VerifyQuery) events.VerifyAnswer {
	asOf := a.core.AsOf() // read before the keys, which are at least as new
	answer, _ := a.memory.Verify(ctx, q)
	answer.AsOf = asOf
	return answer
}

// Routes returns the handler of POST /v1/verify (docs/protocol.md §8.2), by its pattern for
// [http.ServeMux].
func (a *Auth) Routes() map[string]http.Handler { return a.core.Routes() }

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

// applied joins a committed batch to the memory. If an event had no effect now and still says
// something new, it proves nothing, because another message with its identity may have had an
// effect. Then the database decides.
func (a *Auth) applied(ctx context.Context, batch, fresh []events.Invalidation) error {
	a.memory.Apply(fresh)
	next := 0 // index into fresh, which has the order of batch
	for i := range batch {
		e := &batch[i]
		if next < len(fresh) && storage.SameEvent(&fresh[next], e) {
			next++
			continue
		}
		if a.memory.Has(e) {
			continue
		}
		service, found, err := a.core.Store.KeyringOf(ctx, e.Target)
		if err != nil {
			return fmt.Errorf("read a service again: %w", err)
		}
		if found {
			a.memory.Join(e.Target, service.Keyring, service.Sequence)
		}
	}
	if a.observer != nil {
		a.observer(batch)
	}
	return nil
}
