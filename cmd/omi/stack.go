package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/billingsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/registry"
)

// healthEvery is how often a stack that starts is asked whether it serves.
const healthEvery = 5 * time.Millisecond

// stackConfig says what one machine's whole deployment is.
type stackConfig struct {
	Folder   string // of keys, databases and streams
	NATSAddr string
	Policy   registry.Policy
	Apps     []registry.App
	Metrics  prometheus.Registerer
	Log      *slog.Logger

	Committed, AuthApplied, BillingApplied func([]events.Invalidation) // nil: nobody asks
}

// stack is broker, registry, Auth and Billing in one process. Each has a connection and a database of its own, as if
// it were a process of its own: they share nothing but the broker.
type stack struct {
	key      events.SigningKey
	broker   *broker.Server
	registry *registry.Registry
	auth     *authsub.Auth
	billing  *billingsub.Billing
	store    *registry.Store

	closers []func()
}

// newStack starts the broker and opens the databases; nothing is served before [stack.actors] run.
func newStack(ctx context.Context, cfg stackConfig) (_ *stack, err error) {
	s := &stack{} // not the result, which an error sets to nil
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := os.MkdirAll(cfg.Folder, 0o700); err != nil {
		return nil, process.Usagef("--data: %w", err)
	}
	if s.key, err = readOrCreate(filepath.Join(cfg.Folder, "registry.pem")); err != nil {
		return nil, err
	}
	if s.broker, err = broker.Start(broker.Config{Addr: cfg.NATSAddr, StoreDir: filepath.Join(cfg.Folder, "jetstream"), Log: cfg.Log}); err != nil {
		return nil, process.Usage(fmt.Errorf("%w: choose another with --nats-addr", err))
	}
	s.closers = append(s.closers, s.broker.Shutdown)
	if err := s.openRegistry(ctx, cfg); err != nil {
		return nil, err
	}
	if err := s.openSubscribers(ctx, cfg); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *stack) openRegistry(ctx context.Context, cfg stackConfig) (err error) {
	nc, _, err := s.connect("omi-registry", cfg.Log)
	if err != nil {
		return err
	}
	if s.store, err = registry.OpenStore(ctx, s.database(cfg, "registry"), cfg.Log); err != nil {
		return err
	}
	s.closeLater("registry", s.store.Close, cfg.Log)
	for _, app := range cfg.Apps {
		if err := s.store.AddApp(ctx, app, time.Now().Unix()); err != nil {
			return process.Usage(err)
		}
	}
	s.registry, err = registry.New(registry.Config{
		Policy: cfg.Policy, Key: s.key, Store: s.store, Conn: nc, Committed: cfg.Committed, Metrics: cfg.Metrics, Log: cfg.Log.With("part", "registry"),
	})
	return err
}

func (s *stack) openSubscribers(ctx context.Context, cfg stackConfig) error {
	trust, err := events.NewTrust(cfg.Policy.Origin, s.key.Public())
	if err != nil {
		return fmt.Errorf("trust the registry: %w", err)
	}
	_, js, err := s.connect("omi-authsub", cfg.Log)
	if err != nil {
		return err
	}
	s.auth, err = authsub.New(ctx, authsub.Config{
		JetStream: js, DatabaseURL: s.database(cfg, "authsub"), Trust: trust, Applied: cfg.AuthApplied,
		Metrics: cfg.Metrics, Log: cfg.Log.With("part", "authsub"),
	})
	if err != nil {
		return err
	}
	s.closeLater("authsub", s.auth.Close, cfg.Log)
	if _, js, err = s.connect("omi-billingsub", cfg.Log); err != nil {
		return err
	}
	s.billing, err = billingsub.New(ctx, billingsub.Config{
		JetStream: js, DatabaseURL: s.database(cfg, "billingsub"), Trust: trust, Applied: cfg.BillingApplied,
		Metrics: cfg.Metrics, Log: cfg.Log.With("part", "billingsub"),
	})
	if err != nil {
		return err
	}
	s.closeLater("billingsub", s.billing.Close, cfg.Log)
	return nil
}

func (s *stack) database(cfg stackConfig, part string) string {
	return "sqlite:" + filepath.Join(cfg.Folder, part+".db")
}

func (s *stack) connect(name string, log *slog.Logger) (*nats.Conn, jetstream.JetStream, error) {
	nc, err := process.NATS{URL: s.broker.URL()}.Connect(name, log)
	if err != nil {
		return nil, nil, err
	}
	s.closers = append(s.closers, func() { process.Close(nc, log) })
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, fmt.Errorf("use JetStream: %w", err)
	}
	return nc, js, nil
}

func (s *stack) closeLater(what string, closes func() error, log *slog.Logger) {
	s.closers = append(s.closers, func() {
		if err := closes(); err != nil {
			log.Warn("close", "what", what, "error", err)
		}
	})
}

// Close closes what newStack opened, last first.
func (s *stack) Close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
	s.closers = nil
}

// actors are the parts that run.
func (s *stack) actors() []process.Actor {
	return []process.Actor{s.registry.Run, s.auth.Run, s.billing.Run}
}

// endpoints are §8's, all of them.
func (s *stack) endpoints() []api.Endpoint {
	return append(append(s.registry.Lookup.Endpoints(), s.auth.Endpoints()...), s.billing.Endpoints()...)
}

// healthy reports what is not.
func (s *stack) healthy(ctx context.Context) error {
	if err := s.store.Ping(ctx); err != nil {
		return errors.New("the registry's database is away")
	}
	return errors.Join(s.registry.Ready(), s.auth.Ready(), s.billing.Ready())
}

// awaitHealthy waits until every part serves, or says what does not when ctx ends.
func (s *stack) awaitHealthy(ctx context.Context) error {
	for {
		err := s.healthy(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the registry, Auth and Billing: %w", err)
		case <-time.After(healthEvery):
		}
	}
}

// readOrCreate reads a key, or makes it where there is none.
func readOrCreate(path string) (events.SigningKey, error) {
	key, err := keyfile.Read(path)
	if errors.Is(err, keyfile.ErrMissing) {
		key = events.GenerateSigningKey()
		err = keyfile.Create(path, key)
	}
	if err != nil {
		return events.SigningKey{}, process.Usage(err)
	}
	return key, nil
}
