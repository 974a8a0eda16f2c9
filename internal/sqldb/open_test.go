package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

func TestOpenEachEngine(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		if name := string(db.Engine()); !strings.HasSuffix(t.Name(), "/"+name) {
			t.Errorf("engine %q", name)
		}
		if err := db.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		exec(t, db, "CREATE TABLE t (n BIGINT)")
		exec(t, db, "INSERT INTO t VALUES ($1)", 7)
		if n := number(t, db, "SELECT n FROM t"); n != 7 {
			t.Errorf("read %d", n)
		}
	})
}

func TestOpenRefusesURLs(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a URL that passes is waited for
	defer cancel()
	for _, text := range []string{
		"", "registry.db", "mysql://u:" + secret + "@h/db", "postgres:u:" + secret, "sqlite:", "sqlite::memory:",
		"sqlite://data/x.db", "sqlite:x.db?cache=shared", "sqlite:x\x00y",
		"postgres://u:" + secret + "@h:port/db", "postgres://u:" + secret + "/x@h/db", "postgres://u:%zz" + secret + "@h/db",
		"postgres://u:" + secret + "@h/db?sslmode=" + secret, "postgres://u:" + secret + "@h:1,x:2/db?port=1,2,3",
		"postgres://h/db?password=" + secret + "&connect_timeout=" + secret,
		"postgres://u:" + secret + "@h/db?default_query_exec_mode=" + secret,
		"postgres://u:" + secret + "@h:5432", "postgres://u:" + secret + "@h:5432/?sslmode=disable",
	} {
		_, err := sqldb.Open(ctx, text, slog.New(slog.DiscardHandler))
		if !errors.Is(err, sqldb.ErrURL) {
			t.Errorf("%q: got %v", text, err)
			continue
		}
		if s := err.Error(); strings.Contains(s, secret) || strings.Contains(s, "\n") {
			t.Errorf("%q: the error quotes a password, or has several lines: %s", text, s)
		}
		if sqldb.Transient(err) {
			t.Errorf("%q: trying again won't help", text)
		}
	}
}

func TestOpenRefusedByServer(t *testing.T) {
	t.Parallel()
	const secret = "wr0ng-s3cr3t"
	stranger := func(u *url.URL) { u.User = url.UserPassword("nobody_here", secret) }
	noDatabase := func(u *url.URL) { u.Path = "/no_such_database" }
	for _, tt := range []struct {
		name, engine string
		spoil        func(*url.URL)
	}{
		{"user and password", testenv.Postgres, stranger},
		{"database", testenv.Postgres, noDatabase},
		{"database of cockroach", testenv.Cockroach, noDatabase}, // which may be one that lets in anybody
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(testenv.Database(t, tt.engine))
			if err != nil {
				t.Fatal(err)
			}
			tt.spoil(u)
			_, err = sqldb.Open(t.Context(), u.String(), slog.New(slog.DiscardHandler))
			if !errors.Is(err, sqldb.ErrURL) || sqldb.Transient(err) {
				t.Fatalf("got %v", err)
			}
			if s := err.Error(); strings.Contains(s, secret) || strings.Contains(s, "\n") {
				t.Errorf("the error quotes a password, or has several lines: %s", s)
			}
		})
	}
}

// TestOpenWithoutDatabase: a URL says which database it means, in any way that PostgreSQL's own tools take.
func TestOpenWithoutDatabase(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://u@h:5432":             "add /DATABASE",
		"postgresql://u@h:5432/":          "add /DATABASE",
		"postgres://u@h:5432/?dbname=omi": "",
		"postgres://u@h1:1,h2:2/omi":      "",
	} {
		err := sqldb.CheckURL(text)
		if want == "" && err != nil || want != "" && (!errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestOpenWithoutTLS: a server that has no TLS is not waited for until the deadline.
func TestOpenWithoutTLS(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(testenv.Database(t, testenv.Postgres))
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = "sslmode=require"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = sqldb.Open(ctx, u.String(), slog.New(slog.DiscardHandler))
	if !errors.Is(err, sqldb.ErrURL) || sqldb.Transient(err) || !strings.Contains(err.Error(), "sslmode=disable") {
		t.Errorf("it says %v", err)
	}
}

// through returns the URL of a database behind a proxy.
func through(t *testing.T, text string) (*testenv.Proxy, string) {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	p := testenv.NewProxy(t, net.JoinHostPort(u.Hostname(), u.Port()))
	u.Host = p.Addr()
	return p, u.String()
}

func TestOpenWaitsForTheServer(t *testing.T) {
	t.Parallel()
	p, text := through(t, testenv.Database(t, testenv.Postgres))
	p.Cut()
	var log testenv.Log
	opened := make(chan error, 1)
	go func() {
		db, err := sqldb.Open(t.Context(), text, slog.New(slog.NewTextHandler(&log, nil)))
		if err == nil {
			err = db.Close()
		}
		opened <- err
	}()
	testenv.Eventually(t, time.Minute, "a warning", func() error {
		if !strings.Contains(log.String(), "waiting for the database") {
			return errors.New(log.String())
		}
		return nil
	})
	p.Restore()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	if s := log.String(); !strings.Contains(s, "the database answers") || strings.Count(s, "level=WARN") != 1 {
		t.Errorf("log: %s", s)
	}
	if u, err := url.Parse(text); err != nil {
		t.Error(err)
	} else if password, set := u.User.Password(); set && strings.Contains(log.String(), password) {
		t.Error("the log has the password")
	}
}

func TestOpenEndsWithContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	// A port on which nobody listens refuses at once.
	_, err := sqldb.Open(ctx, "postgres://u:s3cr3t@127.0.0.1:1/db", slog.New(slog.DiscardHandler))
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, sqldb.ErrURL) {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("the error doesn't say what it waited for: %v", err)
	}
}

func TestDeadConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	p, text := through(t, testenv.Database(t, testenv.Postgres))
	db := open(t, text)
	p.Cut()
	err := db.Ping(t.Context())
	if err == nil || !sqldb.Transient(err) {
		t.Errorf("during the outage: %v", err)
	}
	p.Restore()
	if err := db.Ping(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestSQLiteFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "100% & #1.db")
	db := open(t, "sqlite:"+path)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	for name, want := range map[string]os.FileMode{
		filepath.Dir(path): 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600,
	} {
		info, err := os.Stat(name)
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
	}
	for pragma, want := range map[string]int64{
		"synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000, "wal_autocheckpoint": 20000, "cache_size": -65536,
	} {
		if got := number(t, db, "PRAGMA "+pragma); got != want {
			t.Errorf("%s is %d, want %d", pragma, got, want)
		}
	}
	if _, err := db.Reader().ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err == nil {
		t.Error("the reader writes")
	}
}

func TestSQLiteReadersDoNotWaitForTheWriter(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.SQLite))
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	tx, err := db.Writer().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	if n := number(t, db, "SELECT count(*) FROM t"); n != 0 {
		t.Errorf("a reader sees %d rows that nobody committed", n)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := number(t, db, "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("a reader sees %d rows after the commit", n)
	}
}

func TestSQLiteOpenedByManyAtOnce(t *testing.T) {
	t.Parallel()
	text := testenv.Database(t, testenv.SQLite)
	together(t, 8, func() error {
		db, err := sqldb.Open(t.Context(), text, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return db.Close()
	})
}

// together runs do n times at once.
func together(t *testing.T, n int, do func() error) {
	t.Helper()
	results := make(chan error, n)
	for range n {
		go func() { results <- do() }()
	}
	for range n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestCheckpoint: the log is folded into the file though no commit comes to do it, nor would.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	db := open(t, "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	exec(t, db, "CREATE TABLE t (page BLOB)")
	exec(t, db, manyPages)
	testenv.Eventually(t, time.Minute, "the log is folded", func() error {
		return folded(t, db, func(all, folded int) bool { return all >= 5000 && folded == all })
	})
}

// TestCheckpointToTheEnd: what stayed in a long log, because of a concurrent reader, is folded too, however little it is: otherwise the log
// would grow until a commit has to fold it. The next commit begins it again.
func TestCheckpointToTheEnd(t *testing.T) {
	t.Parallel()
	db := open(t, "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	exec(t, db, "CREATE TABLE t (page BLOB)")
	early := reading(t, db) // nothing of what follows is folded
	exec(t, db, manyPages)
	late := reading(t, db)
	exec(t, db, "INSERT INTO t VALUES (1)")
	early()
	testenv.Eventually(t, time.Minute, "the log is folded but for the last commit", func() error {
		return folded(t, db, func(all, folded int) bool { return folded >= 5000 && folded < all })
	})
	late()
	testenv.Eventually(t, time.Minute, "the log is folded to its end", func() error {
		return folded(t, db, func(all, folded int) bool { return folded == all })
	})
	exec(t, db, "INSERT INTO t VALUES (2)")
	if err := folded(t, db, func(all, _ int) bool { return all < 5000 }); err != nil {
		t.Error("the log is not used again: ", err)
	}
}

const manyPages = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO t SELECT randomblob(4000) FROM n`

// folded is an error unless so it is with the pages of the log, all of them and those that are folded.
func folded(t *testing.T, db *sqldb.DB, so func(all, folded int) bool) error {
	t.Helper()
	var busy, all, folded int
	if err := db.QueryRow(t.Context(), "PRAGMA wal_checkpoint(NOOP)").Scan(&busy, &all, &folded); err != nil {
		return err
	}
	if !so(all, folded) {
		return fmt.Errorf("of %d pages %d are folded", all, folded)
	}
	return nil
}

// reading reads, and goes on to see what there is now until the returned function is called.
func reading(t *testing.T, db *sqldb.DB) (end func()) {
	t.Helper()
	tx, err := db.Reader().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := tx.QueryRowContext(t.Context(), "SELECT count(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}
