package broker_test

import (
	"log/slog"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/internal/localserver"
)

func start(t *testing.T, cfg broker.Config) *broker.Server {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	s, err := broker.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func connect(t *testing.T, s *broker.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.URL(), nats.Timeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestRestartKeepsMessagesAndPort(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	addrs, err := localserver.FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	addr := addrs[0]
	first := start(t, broker.Config{Addr: addr, StoreDir: store, SyncAlways: true})
	js := connect(t, first)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s.a", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	first.Shutdown()
	first.Shutdown() // a second time is harmless

	second := start(t, broker.Config{Addr: addr, StoreDir: store})
	if second.URL() != first.URL() {
		t.Errorf("restarted on %s, want %s", second.URL(), first.URL())
	}
	stream, err := connect(t, second).Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(t.Context(), "s.a")
	if err != nil {
		t.Fatal(err)
	}
	if string(msg.Data) != "hello" {
		t.Errorf("got %q after the restart", msg.Data)
	}
}

func TestListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"", ":0", ":-1", "127.0.0.1:0"} {
		s := start(t, broker.Config{Addr: addr, StoreDir: t.TempDir()})
		u, err := url.Parse(s.URL())
		if err != nil {
			t.Fatal(err)
		}
		if !net.ParseIP(u.Hostname()).IsLoopback() || u.Port() == "0" || u.Port() == "4222" {
			t.Errorf("Addr %q: listens on %s", addr, u.Host)
		}
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })

	for name, tt := range map[string]struct {
		cfg  broker.Config
		want []string
	}{
		"port in use":   {broker.Config{Addr: taken.Addr().String(), StoreDir: t.TempDir()}, []string{taken.Addr().String(), "in use"}},
		"no store":      {broker.Config{}, []string{"folder"}},
		"store no dir":  {broker.Config{StoreDir: "/dev/null/x"}, []string{"/dev/null"}},
		"no port":       {broker.Config{Addr: "127.0.0.1", StoreDir: t.TempDir()}, []string{"127.0.0.1"}},
		"no such port":  {broker.Config{Addr: "127.0.0.1:70000", StoreDir: t.TempDir()}, []string{"70000"}},
		"port by name":  {broker.Config{Addr: "127.0.0.1:nats", StoreDir: t.TempDir()}, []string{"no such port"}},
		"not this host": {broker.Config{Addr: "192.0.2.1:4222", StoreDir: t.TempDir()}, []string{"192.0.2.1:4222"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			tt.cfg.Log = slog.New(slog.DiscardHandler)
			s, err := broker.Start(tt.cfg)
			if err == nil {
				s.Shutdown()
				t.Fatal("started")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %v to say so", took)
			}
		})
	}
}

func TestLogLevels(t *testing.T) {
	t.Parallel()
	var quiet strings.Builder
	s, err := broker.Start(broker.Config{
		StoreDir: t.TempDir(),
		Log:      slog.New(slog.NewTextHandler(&quiet, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	if quiet.Len() > 0 {
		t.Errorf("a start without trouble says at level warn: %s", quiet.String())
	}
}
