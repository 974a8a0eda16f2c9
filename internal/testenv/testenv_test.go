package testenv_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestDatabasesAreFreshAndGo(t *testing.T) {
	t.Parallel()
	var first string
	t.Cleanup(func() { // runs after that of the databases
		if first == "" {
			return // skipped
		}
		_, err := pgx.Connect(context.Background(), first)
		if err == nil || !strings.Contains(err.Error(), "3D000") {
			t.Errorf("the database outlived its test: %v", err)
		}
	})
	first = testenv.Database(t, testenv.Postgres)
	if second := testenv.Database(t, testenv.Postgres); first == second {
		t.Error("two tests got one database")
	}
	conn, err := pgx.Connect(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	// The connection stays open on purpose: the database is dropped all the same.
	if _, err := conn.Exec(t.Context(), "CREATE TABLE t (id int)"); err != nil {
		t.Error(err)
	}
}

func TestEachEngineGivesURLs(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		if scheme, rest, ok := strings.Cut(url, ":"); !ok || rest == "" {
			t.Errorf("got %q", scheme)
		}
	})
}

func TestDatabasesAreApart(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{testenv.Postgres, testenv.Cockroach} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			database := testenv.Databases(t, engine)
			for range 2 {
				conn, err := pgx.Connect(t.Context(), database())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Exec(t.Context(), "CREATE TABLE t (id INT PRIMARY KEY)"); err != nil {
					t.Error(err)
				}
				if err := conn.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestBrokerComesBackOnItsPort(t *testing.T) {
	t.Parallel()
	b := testenv.NewBroker(t)
	nc := testenv.Connect(t, b.URL())
	b.Stop()
	testenv.Eventually(t, time.Minute, "notice the outage", func() error {
		if nc.IsConnected() {
			return errors.New("still connected")
		}
		return nil
	})
	if other, err := nats.Connect(b.URL()); err == nil {
		other.Close()
		t.Error("connected to a stopped broker")
	}
	b.Start()
	testenv.Eventually(t, time.Minute, "reconnect", func() error { return nc.FlushTimeout(time.Second) })
}

func TestProxy(t *testing.T) {
	t.Parallel()
	p := testenv.NewProxy(t, echo(t))

	first, err := dial(t, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(first); err != nil {
		t.Fatalf("through the proxy: %v", err)
	}
	p.Cut()
	if err := roundTrip(first); err == nil {
		t.Error("a connection outlived the cut")
	}
	if err := dialRoundTrip(t, p); err == nil {
		t.Error("a new connection got through the cut")
	}
	p.Restore()
	if err := dialRoundTrip(t, p); err != nil {
		t.Errorf("after Restore: %v", err)
	}
}

func TestProxyHoldsBack(t *testing.T) {
	t.Parallel()
	p := testenv.NewProxy(t, echo(t))
	conn, err := dial(t, p)
	if err != nil {
		t.Fatal(err)
	}
	const delay = 50 * time.Millisecond
	p.Slow(delay)
	began := time.Now()
	if err := roundTrip(conn); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*delay { // there and back
		t.Errorf("a slow way took %v", took)
	}
	p.Stall()
	back := make(chan error, 2)
	go func() { back <- roundTrip(conn) }()
	go func() { back <- dialRoundTrip(t, p) }() // taken, as by a server that hangs
	select {
	case err := <-back:
		t.Fatalf("something came through a black hole, or broke in it: %v", err)
	case <-time.After(4 * delay): // nothing comes: there is no other way to see it
	}
	p.Restore()
	for range 2 {
		if err := <-back; err != nil {
			t.Errorf("after Restore: %v", err)
		}
	}
	p.Retarget("127.0.0.1:1")
	if err := roundTrip(conn); err != nil {
		t.Errorf("a connection that was there: %v", err)
	}
	if err := dialRoundTrip(t, p); err == nil {
		t.Error("a new connection went to the old target")
	}
}

// dialRoundTrip makes a new connection and uses it: while the proxy is cut, either step may be the
// one that sees it.
func dialRoundTrip(t *testing.T, p *testenv.Proxy) error {
	t.Helper()
	conn, err := dial(t, p)
	if err != nil {
		return err
	}
	return roundTrip(conn)
}

func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, p *testenv.Proxy) (net.Conn, error) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.Addr())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, nil
}

func roundTrip(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}
