package process_test

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestWaitingSaysWhy: a process that has no broker logs why, once for each reason however often it
// tries; and then that it has one.
func TestWaitingSaysWhy(t *testing.T) {
	t.Parallel()
	addr := testenv.FreeAddrs(t, 1)[0]
	said := &testenv.Log{}
	nc, err := process.NATS{URL: "nats://" + addr}.Connect("test", slog.New(slog.NewTextHandler(said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	said.Await(t, "connection refused")
	stop := serveBroker(t, addr, "s3cr3t")
	said.Await(t, `do="give --nats-nkey`)
	testenv.Eventually(t, time.Minute, "it tries again", func() error {
		if tries := nc.Stats().Reconnects; tries < 4 {
			return fmt.Errorf("%d tries", tries)
		}
		return nil
	})
	for _, once := range []string{"connection refused", "Authorization Violation"} {
		if n := said.Count(once); n != 1 {
			t.Errorf("it says %d times %q", n, once)
		}
	}
	stop()
	stop = serveBroker(t, addr, "")
	said.Await(t, `level=INFO msg="connected to the broker"`)
	stop()
	serveBroker(t, addr, "s3cr3t")
	testenv.Eventually(t, time.Minute, "the same reason is told again after there was a broker", func() error {
		if n := said.Count("Authorization Violation"); n != 2 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
}

// serveBroker runs a broker that lets in every client with the password.
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

// TestWaitingNamesTheFlag: whatever a broker requires, the log names the flag for it.
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
			said := &testenv.Log{}
			nc, err := c.nats.Connect("test", slog.New(slog.NewTextHandler(said, nil)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			said.Await(t, c.want)
		})
	}
}

// TestUnencryptedCredentials: credentials that go to another machine without TLS are logged once,
// without the password.
func TestUnencryptedCredentials(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	key, ca := filepath.Join(folder, "nkey.pem"), filepath.Join(folder, "ca.pem")
	if err := keyfile.Create(key, events.GenerateSigningKey()); err != nil {
		t.Fatal(err)
	}
	testenv.Certify(t, ca, filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
	here := anotherAddress(t)
	for _, c := range []struct {
		nats   process.NATS
		warned int
	}{
		{process.NATS{URL: "nats://u:s3cr3t@" + here}, 1},
		{process.NATS{URL: "t0k3n-s3cr3t@" + here}, 1},
		{process.NATS{URL: "ws://" + here, NKey: key}, 1},
		{process.NATS{URL: "tls://" + here + ",nats://" + here + ",nats://" + here, NKey: key}, 1},
		{process.NATS{URL: "nats://" + here}, 0},
		{process.NATS{URL: "tls://u:s3cr3t@" + here}, 0},
		{process.NATS{URL: "nats://u:s3cr3t@" + here, CA: ca}, 0},
		{process.NATS{URL: "nats://u:s3cr3t@127.0.0.1:1,nats://u:s3cr3t@[::1]:1,localhost:1", NKey: ""}, 0},
		{process.NATS{URL: "s3cr3t@127.0.0.1:1"}, 0},
	} {
		said := &testenv.Log{}
		if _, err := c.nats.ConnectNow(t.Context(), "test", slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%+v: %v", c.nats, err)
		}
		nc, err := c.nats.Connect("test", slog.New(slog.NewTextHandler(said, nil)))
		if err != nil {
			t.Fatalf("%+v: %v", c.nats, err)
		}
		nc.Close()
		if n := said.Count("unencrypted"); n != c.warned || said.Count("s3cr3t") > 0 {
			t.Errorf("%+v: warned %d times, want %d: %s", c.nats, n, c.warned, said.String())
		}
	}
}

// anotherAddress is an address of this machine, not the loopback, on which no process listens.
func anotherAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		if network, ok := addr.(*net.IPNet); ok && !network.IP.IsLoopback() && network.IP.To4() != nil {
			return net.JoinHostPort(network.IP.String(), "1")
		}
	}
	return "192.0.2.1:1" // reserved for documentation: no machine has it
}
