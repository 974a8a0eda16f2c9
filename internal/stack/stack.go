// Package stack runs the broker, the registry, Auth and Billing in one process, for `omi dev`,
// `omi demo` and `omi bench`.
package stack

import (
	"context"
	"errors"
	"fmt"
	"iter"
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
	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry"
	"omiappreg.org/keyrotation/streams"
)

// healthEvery is how often a stack that starts is asked whether it serves.
const healthEvery = 5 * time.Millisecond

// The names of a stack's parts.
const (
	PartBroker   = "broker"
	PartRegistry = "registry"
	PartAuth     = "auth"
	PartBilling  = "billing"
)

// The contents of a stack's folder: the streams of the broker that it starts, and the registry's
// key.
const (
	BrokerFolder    = "jetstream"
	RegistryKeyFile = "registry.pem"
)

// Config configures a whole deployment on one machine.
type Config struct {
	Folder     string // of keys, databases and streams
	NATSAddr   string
	SyncAlways bool // of a broker that the stack starts
	// An existing broker; without a URL, the stack starts one in the process.
	NATS process.NATS
	// The URL of a part's database; nil: SQLite in Folder.
	Database func(part string) string
	// Runs the work of a part; nil: call it directly.
	As      func(part string, do func() error) error
	Policy  registry.Policy
	Streams registry.StreamLimits
	Apps    []registry.App
	Metrics prometheus.Registerer
	Log     *slog.Logger

	Committed, AuthApplied, BillingApplied func([]events.Invalidation) // nil disables the callback
}

// Stack is broker, registry, Auth and Billing in one process. Each has a connection and a database
// of its own, as if it were a process of its own: they share only the broker.
type Stack struct {
	Key      events.SigningKey // the registry's
	Broker   *broker.Server    // nil: Config.NATS named one
	nats     process.NATS
	conn     *nats.Conn // the registry's
	Registry *registry.Registry
	Auth     *authsub.Auth
	Billing  *billingsub.Billing
	Store    *registry.Store

	closers []func()
}

// Open starts the broker and opens the databases. Nothing is served before [Stack.Actors] run.
func Open(ctx context.Context, cfg Config) (_ *Stack, err error) {
	s := &Stack{nats: cfg.NATS} // not the result, which is nil after an error
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := os.MkdirAll(cfg.Folder, 0o700); err != nil {
		return nil, process.Usagef("--data: %w", err)
	}
	if s.Key, err = ReadOrCreate(cfg.Folder, RegistryKeyFile, BrokerFolder); err != nil {
		return nil, err
	}
	if cfg.As == nil {
		cfg.As = func(_ string, do func() error) error { return do() }
	}
	for _, part := range []struct {
		name string
		open func(context.Context, Config) error
	}{
		{PartBroker, s.startBroker}, {PartRegistry, s.openRegistry}, {PartAuth, s.openAuth}, {PartBilling, s.openBilling},
	} {
		err := cfg.As(part.name, func() error { return part.open(ctx, cfg) })
		if errors.Is(err, sqldb.ErrURL) {
			err = process.Usage(err)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// OpenBroker starts only the broker of a stack. Close stops it.
func OpenBroker(ctx context.Context, cfg Config) (*Stack, error) {
	s := &Stack{}
	err := s.startBroker(ctx, cfg)
	return s, err
}

func (s *Stack) startBroker(_ context.Context, cfg Config) (err error) {
	if s.nats.URL != "" {
		return nil
	}
	if s.Broker, err = broker.Start(broker.Config{
		Addr: cfg.NATSAddr, StoreDir: filepath.Join(cfg.Folder, BrokerFolder), SyncAlways: cfg.SyncAlways, Log: cfg.Log,
	}); err != nil {
		return process.Usage(fmt.Errorf("%w: choose another with --nats-addr", err))
	}
	s.closers = append(s.closers, s.Broker.Shutdown)
	s.nats.URL = s.Broker.URL()
	return nil
}

func (s *Stack) openRegistry(ctx context.Context, cfg Config) (err error) {
	if s.conn, _, err = s.Connect("omi-registry", cfg.Log); err != nil {
		return err
	}
	if s.Store, err = registry.OpenStore(ctx, s.database(cfg, "registry"), cfg.Log); err != nil {
		return err
	}
	s.closeLater("registry", s.Store.Close, cfg.Log)
	if err := s.Store.Admin().AddApps(ctx, cfg.Apps, time.Now().Unix(), cfg.Log); err != nil {
		return process.Usage(err)
	}
	s.Registry, err = s.NewRegistry(cfg)
	return err
}

// NewRegistry returns a registry on the stack's broker and database that does not run yet. There is
// no other registry: its policy is the one of this start, and its log says what differs from the
// last start.
func (s *Stack) NewRegistry(cfg Config) (*registry.Registry, error) {
	return registry.New(registry.Config{
		Policy: cfg.Policy, ChangePolicy: true, Streams: cfg.Streams, PublishBatches: cfg.SyncAlways, Key: s.Key, Store: s.Store, Conn: s.conn, Committed: cfg.Committed, Metrics: cfg.Metrics, Log: cfg.Log.With("part", "registry"),
	})
}

// Trust trusts the stack's registry.
func (s *Stack) Trust(cfg Config) (events.Trust, error) {
	trust, err := events.NewTrust(cfg.Policy.Origin, s.Key.Public())
	if err != nil {
		return trust, fmt.Errorf("trust the registry: %w", err)
	}
	return trust, nil
}

// instance names the only Auth of a stack.
const instance = "dev"

// AuthDurable is its durable.
const AuthDurable = streams.AuthDurable + "-" + instance

func (s *Stack) openAuth(ctx context.Context, cfg Config) error {
	trust, err := s.Trust(cfg)
	if err != nil {
		return err
	}
	_, js, err := s.Connect("omi-authsub", cfg.Log)
	if err != nil {
		return err
	}
	s.Auth, err = authsub.New(ctx, authsub.Config{
		JetStream: js, DatabaseURL: s.database(cfg, "authsub"), Instance: instance, Trust: trust, Applied: cfg.AuthApplied,
		Metrics: cfg.Metrics, Log: cfg.Log.With("part", "authsub"),
	})
	if err != nil {
		return err
	}
	s.closeLater("authsub", s.Auth.Close, cfg.Log)
	return nil
}

func (s *Stack) openBilling(ctx context.Context, cfg Config) error {
	trust, err := s.Trust(cfg)
	if err != nil {
		return err
	}
	_, js, err := s.Connect("omi-billingsub", cfg.Log)
	if err != nil {
		return err
	}
	s.Billing, err = billingsub.New(ctx, billingsub.Config{
		JetStream: js, DatabaseURL: s.database(cfg, "billingsub"), Trust: trust, Applied: cfg.BillingApplied,
		Metrics: cfg.Metrics, Log: cfg.Log.With("part", "billingsub"),
	})
	if err != nil {
		return err
	}
	s.closeLater("billingsub", s.Billing.Close, cfg.Log)
	return nil
}

func (s *Stack) database(cfg Config, part string) string {
	if cfg.Database != nil {
		return cfg.Database(part)
	}
	return "sqlite:" + filepath.Join(cfg.Folder, part+".db")
}

// Connect returns a new connection to the broker, which Close closes.
func (s *Stack) Connect(name string, log *slog.Logger) (*nats.Conn, jetstream.JetStream, error) {
	nc, err := s.nats.Connect(name, log)
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

func (s *Stack) closeLater(what string, closes func() error, log *slog.Logger) {
	s.closers = append(s.closers, func() {
		if err := closes(); err != nil {
			log.Warn("close", "what", what, "error", err)
		}
	})
}

// Close closes what [Open] opened, in reverse order.
func (s *Stack) Close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
	s.closers = nil
}

// Actors are the parts that run.
func (s *Stack) Actors() []process.Actor {
	return []process.Actor{s.Registry.Run, s.Auth.Run, s.Billing.Run}
}

// Parts returns the parts of all three, each with the program's name before its own.
func (s *Stack) Parts() []health.Part {
	var all []health.Part
	for _, one := range []struct {
		of     string
		checks iter.Seq2[string, func(context.Context) error]
	}{{PartRegistry, s.Registry.Checks()}, {PartAuth, s.Auth.Checks()}, {PartBilling, s.Billing.Checks()}} {
		for name, check := range one.checks {
			all = append(all, health.Part{Name: one.of + "/" + name, Check: check})
		}
	}
	return all
}

// AwaitHealthy waits until every part serves. If ctx ends before, the error says what does not.
func (s *Stack) AwaitHealthy(ctx context.Context) error {
	for {
		err := errors.Join(s.Registry.Ready(), s.Auth.Ready(), s.Billing.Ready())
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

// ReadOrCreate reads a key of a folder, or makes it if it is missing. If the folder has something
// that was made with a key, and the key is gone, it makes none: another key would not be believed.
func ReadOrCreate(folder, name string, made ...string) (events.SigningKey, error) {
	path := filepath.Join(folder, name)
	key, err := keyfile.Read(path)
	if errors.Is(err, keyfile.ErrMissing) {
		for _, with := range made {
			if _, err := os.Stat(filepath.Join(folder, with)); err == nil {
				return key, process.Usagef("%s is missing, and %s was made with it: restore it, or start with another folder (--data)",
					path, filepath.Join(folder, with))
			}
		}
		key = events.GenerateSigningKey()
		err = keyfile.Create(path, key)
	}
	if err != nil {
		return events.SigningKey{}, process.Usage(err)
	}
	return key, nil
}
