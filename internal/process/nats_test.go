package process_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/testenv"
)

// logged is a log that a test reads while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

func (l *logged) await(t *testing.T, what string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, "the log says "+what, func() error {
		if l.count(what) == 0 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return fmt.Errorf("it says %s", l.text.String())
		}
		return nil
	})
}

// TestWaitingSaysWhy: a process that has no broker says why, once for each reason however often it tries; and that it has one.
func TestWaitingSaysWhy(t *testing.T) {
	t.Parallel()
	addr := testenv.FreeAddrs(t, 1)[0]
	said := &logged{}
	nc, err := process.NATS{URL: "nats://" + addr}.Connect("test", slog.New(slog.NewTextHandler(said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	said.await(t, "connection refused")
	stop := serveBroker(t, addr, "s3cr3t")
	said.await(t, `do="give --nats-nkey`)
	testenv.Eventually(t, time.Minute, "it tries again", func() error {
		if tries := nc.Stats().Reconnects; tries < 4 {
			return fmt.Errorf("%d tries", tries)
		}
		return nil
	})
	for _, once := range []string{"connection refused", "Authorization Violation"} {
		if n := said.count(once); n != 1 {
			t.Errorf("it says %d times %q", n, once)
		}
	}
	stop()
	stop = serveBroker(t, addr, "")
	said.await(t, `level=INFO msg="connected to the broker"`)
	stop()
	serveBroker(t, addr, "s3cr3t")
	testenv.Eventually(t, time.Minute, "the same reason is told again after there was a broker", func() error {
		if n := said.count("Authorization Violation"); n != 2 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
}

// serveBroker runs a broker that lets in whoever has the password.
func serveBroker(t *testing.T, addr, password string) (stop func()) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	opts := &server.Options{Host: host, NoSigs: true, NoLog: true}
	if opts.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	if password != "" {
		opts.Username, opts.Password = "omi", password
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	stop = func() {
		s.Shutdown()
		s.WaitForShutdown()
	}
	t.Cleanup(stop)
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the broker does not start")
	}
	return stop
}

// TestWaitingNamesTheFlag: whatever a broker that is there wants otherwise, the log names the flag for it.
func TestWaitingNamesTheFlag(t *testing.T) {
	t.Parallel()
	secured := testenv.NewSecuredBroker(t, func(func(string) string) string { return "" })
	plain := testenv.NewBroker(t)
	stranger := filepath.Join(t.TempDir(), "stranger.pem")
	if err := keyfile.Create(stranger, events.GenerateSigningKey()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		nats process.NATS
		want string
	}{
		"an nkey that it does not know": {process.NATS{URL: secured.URL(), CA: secured.CA(), NKey: stranger}, "give --nats-nkey"},
		"no nkey":                       {process.NATS{URL: secured.URL(), CA: secured.CA()}, "give --nats-nkey"},
		"an unknown authority":          {process.NATS{URL: secured.URL(), NKey: secured.Seed("REGISTRY")}, "by --nats-ca FILE"},
		"a broker without nkeys":        {process.NATS{URL: plain.URL(), NKey: stranger}, "leave out --nats-nkey"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said := &logged{}
			nc, err := c.nats.Connect("test", slog.New(slog.NewTextHandler(said, nil)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			said.await(t, c.want)
		})
	}
}
