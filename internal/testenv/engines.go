package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"omiappreg.org/keyrotation/internal/localserver"
)

// The engines, by the names that subtests and OMI_TEST_REQUIRE have.
const (
	SQLite    = "sqlite"
	Postgres  = "postgres"
	Cockroach = "cockroach"
)

// OpenSSL is the name that OMI_TEST_REQUIRE has for the program.
const OpenSSL = "openssl"

// Engines returns the names of the engines.
func Engines() []string { return []string{SQLite, Postgres, Cockroach} }

// EachEngine runs test once for every engine, as parallel subtests, each with the URL of a fresh and empty database.
func EachEngine(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	for _, engine := range Engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			test(t, Database(t, engine))
		})
	}
}

// Database returns the URL of a fresh and empty database of one engine. It is dropped when the test ends.
func Database(t testing.TB, engine string) string {
	t.Helper()
	if engine == SQLite {
		return "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	}
	admin, err := servers.url(engine)
	if err != nil {
		Missing(t, engine, err)
	}
	name := "omi_test_" + strings.ToLower(rand.Text())
	if err := execute(admin, "CREATE DATABASE "+name); err != nil {
		t.Fatalf("create a database on %s: %v", engine, err)
	}
	t.Cleanup(func() {
		drop := "DROP DATABASE " + name + " WITH (FORCE)" // also under connections that a test has left open
		if engine == Cockroach {
			drop = "DROP DATABASE " + name + " CASCADE"
		}
		if err := execute(admin, drop); err != nil {
			t.Errorf("drop the database: %v", err)
		}
	})
	fresh := *admin
	fresh.Path = "/" + name
	return fresh.String()
}

// Databases returns what makes any number of fresh and empty databases of one engine, at little cost: on a server they are
// the schemas of one database. They go when t ends.
func Databases(t testing.TB, engine string) func() (url string) {
	t.Helper()
	if engine == SQLite {
		return func() string { return Database(t, engine) }
	}
	whole, err := url.Parse(Database(t, engine))
	if err != nil {
		t.Fatalf("read the URL of a database: %v", err)
	}
	return func() string {
		t.Helper()
		name := "omi_test_" + strings.ToLower(rand.Text())
		if err := execute(whole, "CREATE SCHEMA "+name); err != nil {
			t.Fatalf("create a schema on %s: %v", engine, err)
		}
		part := *whole
		query := part.Query()
		query.Set("search_path", name)
		part.RawQuery = query.Encode()
		return part.String()
	}
}

// Missing ends a test that needs what isn't there, an engine or a program: it is skipped, or fails where OMI_TEST_REQUIRE
// names it. No other test skips.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("OMI_TEST_REQUIRE"), ","), what) {
		t.Fatalf("OMI_TEST_REQUIRE asks for %s: %v", what, err)
	}
	t.Skipf("no %s: %v", what, err)
}

func execute(server *url.URL, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.String())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// servers are the database servers of this process. A variable of the package, because a test process has exactly one
// such set, whichever of its tests needs it first, and TestMain, which stops them, shares nothing else with the tests.
//
//nolint:gochecknoglobals // see above
var servers = serverSet{
	Postgres:  {env: "OMI_TEST_POSTGRES_URL", start: startPostgres},
	Cockroach: {env: "OMI_TEST_COCKROACH_URL", start: localserver.StartCockroach},
}

// startPostgres starts one that keeps nothing: speed over durability.
func startPostgres() (*localserver.Server, error) {
	return localserver.StartPostgres(localserver.PostgresConfig{})
}

type serverSet map[string]*sharedServer

// sharedServer is a server that the environment names, or that is started by the first test that needs it.
type sharedServer struct {
	env   string
	start func() (*localserver.Server, error)

	once  sync.Once
	admin *url.URL
	local *localserver.Server // nil: not ours
	err   error
}

func (s serverSet) url(engine string) (*url.URL, error) {
	server, ok := s[engine]
	if !ok {
		return nil, fmt.Errorf("there is no engine %q", engine)
	}
	server.once.Do(server.open)
	return server.admin, server.err
}

func (s serverSet) stop() {
	for _, server := range s {
		if server.local != nil {
			server.local.Stop()
		}
	}
}

func (s *sharedServer) open() {
	if text := os.Getenv(s.env); text != "" {
		if s.admin, s.err = url.Parse(text); s.err != nil {
			s.err = fmt.Errorf("%s is not a URL", s.env) // the parse error would quote the password
		}
		return
	}
	if s.local, s.err = s.start(); s.err != nil {
		s.err = fmt.Errorf("%w (or set %s to the URL of a server)", s.err, s.env)
		return
	}
	s.admin = s.local.URL()
}
