package testenv

import (
	"context"
	"crypto/rand"
	"errors"
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
	"github.com/jackc/pgx/v5/pgconn"

	"omiappreg.org/keyrotation/internal/localserver"
)

// The names of the engines, in subtests and in OMI_TEST_REQUIRE.
const (
	SQLite    = "sqlite"
	Postgres  = "postgres"
	Cockroach = "cockroach"
)

// The names, in OMI_TEST_REQUIRE, of the programs and packages that some tests need.
const (
	OpenSSL   = "openssl"
	Nginx     = "nginx"
	Jose      = "jose" // of npm, in examples/jwks
	PgBouncer = "pgbouncer"
)

// Engines returns the names of the engines.
func Engines() []string { return []string{SQLite, Postgres, Cockroach} }

// EachEngine runs test once for every engine, as parallel subtests, each with the URL of an empty
// database.
func EachEngine(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	for _, engine := range Engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			test(t, Database(t, engine))
		})
	}
}

// Database returns the URL of a new, empty database of one engine. It is dropped when the test
// ends.
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
		drop := "DROP DATABASE " + name + " WITH (FORCE)" // even if connections are open
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

// Databases returns a function that makes any number of empty databases of one engine, at little
// cost. On PostgreSQL they are schemas of one database. On CockroachDB they are not, because it
// would check all of them at each change of one. They are dropped when t ends.
func Databases(t testing.TB, engine string) func() (url string) {
	t.Helper()
	if engine != Postgres {
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

// Missing ends a test that needs an engine or a program which is not installed. The test is
// skipped, or fails if OMI_TEST_REQUIRE names what is missing. Apart from this, only [Long] skips
// tests.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("OMI_TEST_REQUIRE"), ","), what) {
		t.Fatalf("OMI_TEST_REQUIRE asks for %s: %v", what, err)
	}
	t.Skipf("no %s: %v", what, err)
}

func execute(server *url.URL, statement string) error {
	// CockroachDB drops a database table by table.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
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

// servers are the database servers of this process. It is a variable of the package, because a test
// process has exactly one such set, and TestMain, which stops the servers, shares nothing else with
// the tests.
//
//nolint:gochecknoglobals // see above
var servers = serverSet{
	Postgres:  {env: "OMI_TEST_POSTGRES_URL", start: startPostgres},
	Cockroach: {env: "OMI_TEST_COCKROACH_URL", start: localserver.StartCockroach, settings: cockroachSettings()},
}

// cockroachSettings are the settings that CockroachDB's documentation advises for tests (Test Your
// Application Locally). They make changes of a schema quicker, which are most of the work here, and
// let them leave less behind.
func cockroachSettings() []string {
	return []string{
		"SET CLUSTER SETTING kv.range_merge.queue_interval = '50ms'",
		"SET CLUSTER SETTING jobs.registry.interval.gc = '30s'",
		"SET CLUSTER SETTING jobs.registry.interval.cancel = '180s'",
		"SET CLUSTER SETTING jobs.retention_time = '15s'",
		"SET CLUSTER SETTING sql.stats.automatic_collection.enabled = false",
		"SET CLUSTER SETTING kv.range_split.by_load_merge_delay = '5s'",
		"ALTER RANGE default CONFIGURE ZONE USING gc.ttlseconds = 600",
		"ALTER DATABASE system CONFIGURE ZONE USING gc.ttlseconds = 600",
	}
}

// startPostgres starts a server that keeps nothing, because speed matters more here.
func startPostgres() (*localserver.Server, error) {
	return localserver.StartPostgres(localserver.PostgresConfig{})
}

type serverSet map[string]*sharedServer

// sharedServer is a server that the environment names, or that the first test which needs it
// starts.
type sharedServer struct {
	env      string
	start    func() (*localserver.Server, error)
	settings []string // statements for it

	once  sync.Once
	admin *url.URL
	local *localserver.Server // nil: this process did not start it
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
	s.find()
	if s.err == nil {
		set(s.admin, s.settings)
	}
}

// set executes the settings. It ignores those that the server does not let this user change,
// because they only make it quicker.
func set(server *url.URL, settings []string) {
	for _, statement := range settings {
		err := execute(server, statement)
		if refused := (*pgconn.PgError)(nil); err != nil && !errors.As(err, &refused) {
			return // the server is unavailable, as the first test will say
		}
	}
}

func (s *sharedServer) find() {
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
