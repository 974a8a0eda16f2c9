package testenv

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/internal/localserver"
)

// Broker is a broker that a test can stop and start again, on the same port and with the same
// streams.
type Broker struct {
	t      testing.TB
	cfg    broker.Config
	url    string
	server *broker.Server // nil while stopped
}

// NewBroker starts a broker with an empty store. It stops when the test ends.
func NewBroker(t testing.TB) *Broker {
	t.Helper()
	return NewSmallBroker(t, 0)
}

// NewSmallBroker is [NewBroker] with a limit in bytes for all streams; 0: no limit but the disk.
func NewSmallBroker(t testing.TB, bytes int64) *Broker {
	t.Helper()
	b := &Broker{t: t, cfg: broker.Config{
		Addr: FreeAddrs(t, 1)[0], StoreDir: t.TempDir(), MaxStore: bytes, Log: slog.New(slog.DiscardHandler),
	}}
	b.Start()
	t.Cleanup(b.Stop)
	b.url = b.server.URL()
	return b
}

// FreeAddrs is [localserver.FreeAddrs]. It is for servers that stop, and start again on their port.
func FreeAddrs(t testing.TB, n int) []string {
	t.Helper()
	addrs, err := localserver.FreeAddrs(n)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

// URL is what clients connect to. It stays the same while the broker is stopped.
func (b *Broker) URL() string { return b.url }

// Stop stops the broker. Messages that it has not acknowledged may be lost.
func (b *Broker) Stop() {
	if b.server != nil {
		b.server.Shutdown()
		b.server = nil
	}
}

// Empty stops the broker, removes everything that it has stored, and starts it again.
func (b *Broker) Empty() {
	b.t.Helper()
	b.Stop()
	if err := os.RemoveAll(b.cfg.StoreDir); err != nil {
		b.t.Fatal(err)
	}
	b.Start()
}

// Start starts the broker after Stop.
func (b *Broker) Start() {
	b.t.Helper()
	if b.server != nil {
		return
	}
	// Another test may have taken its port while it was stopped.
	Eventually(b.t, time.Minute, "start the broker", func() (err error) {
		b.server, err = broker.Start(b.cfg)
		return err
	})
}

// Connect connects to a broker, and reconnects for as long as the test runs.
func Connect(t testing.TB, url string) *nats.Conn {
	t.Helper()
	return connect(t, url,
		nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 0),
		// Without a handler nats.go prints errors, and these tests cause outages on purpose.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
}

// connect tries for a minute, because the two seconds of nats.go are not always enough on a busy
// machine. A longer timeout in nats.go would apply to reconnects too, and some tests are about a
// connection that swallows everything.
func connect(t testing.TB, url string, options ...nats.Option) (nc *nats.Conn) {
	t.Helper()
	Eventually(t, time.Minute, "connect to the broker", func() (err error) {
		nc, err = nats.Connect(url, options...)
		return err
	})
	t.Cleanup(nc.Close)
	return nc
}

// ServeConfig starts a broker with a configuration file. It stops when the test ends.
func ServeConfig(t testing.TB, file string) *server.Server {
	t.Helper()
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatalf("read the configuration: %v", err)
	}
	return serve(t, opts)
}

// ServeText starts a broker with the text of a configuration, on a free port and with an empty
// store. It returns the URL.
func ServeText(t testing.TB, config string) (url string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nats-server.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatalf("read the configuration: %v", err)
	}
	return ServeOptions(t, opts)
}

// NewBrokerOf is [NewBroker] with the text of a configuration. Stop has no effect on it.
func NewBrokerOf(t testing.TB, config string) *Broker {
	t.Helper()
	return &Broker{t: t, url: ServeText(t, config)}
}

// ServeOptions is [ServeText] with options instead of a text.
func ServeOptions(t testing.TB, opts *server.Options) (url string) {
	t.Helper()
	opts.Host, opts.Port, opts.StoreDir = "127.0.0.1", server.RANDOM_PORT, t.TempDir()
	return serve(t, opts).ClientURL()
}

func serve(t testing.TB, opts *server.Options) *server.Server {
	t.Helper()
	opts.NoSigs, opts.NoLog = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatalf("set up the broker: %v", err)
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the broker does not start")
	}
	return s
}
