package sqldb_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// eachCockroach runs a test on CockroachDB where there is one, and everywhere on PostgreSQL that is
// taken for one: it knows the same statements of a savepoint.
func eachCockroach(t *testing.T, test func(t *testing.T, url string, open func(url string) *sqldb.DB)) {
	t.Helper()
	t.Run("cockroach", func(t *testing.T) {
		t.Parallel()
		test(t, testenv.Database(t, testenv.Cockroach), func(url string) *sqldb.DB { return open(t, url) })
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, testenv.Database(t, testenv.Postgres), func(url string) *sqldb.DB { return takenForCockroach(t, url) })
	})
}

func takenForCockroach(t *testing.T, url string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.OpenAsCockroach(t.Context(), url, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// TestCockroachRoundTrips: what needs no answer goes together on CockroachDB, too. Only the
// statements whose rows are counted are awaited before the RELEASE.
func TestCockroachRoundTrips(t *testing.T) {
	t.Parallel()
	eachCockroach(t, func(t *testing.T, url string, open func(url string) *sqldb.DB) {
		behind, trips := countTrips(t, url, "exec")
		db := open(behind)
		exec(t, db, "CREATE TABLE t (n BIGINT)")
		for _, tt := range []struct {
			what string
			want int64
			do   func(tx *sqldb.Tx) error
		}{
			{"nothing", 0, func(*sqldb.Tx) error { return nil }},
			{"all at the commit", 1, func(tx *sqldb.Tx) error { return tx.RunAtCommit(t.Context(), twoInserts()) }},
			{"counted", 2, func(tx *sqldb.Tx) error {
				p := twoInserts()
				p.Must("update", "UPDATE t SET n = n WHERE n = $1", []any{0}, 0, errors.New("there is no such row"))
				return tx.RunAtCommit(t.Context(), p)
			}},
			{"awaited, and more at the commit", 2, func(tx *sqldb.Tx) error {
				return errors.Join(tx.Run(t.Context(), twoInserts()), tx.RunAtCommit(t.Context(), twoInserts()))
			}},
			{"a row that is read, and written", 2, func(tx *sqldb.Tx) error {
				n := 0
				err := tx.QueryRow(t.Context(), "SELECT COUNT(*) FROM t").Scan(&n)
				return errors.Join(err, tx.RunAtCommit(t.Context(), twoInserts()))
			}},
		} {
			before := trips.Load()
			if err := db.InTx(t.Context(), tt.do); err != nil {
				t.Fatalf("%s: %v", tt.what, err)
			}
			if got := trips.Load() - before; got != tt.want {
				t.Errorf("%s: %d round trips, want %d", tt.what, got, tt.want)
			}
		}
		before := trips.Load()
		var p sqldb.Pipeline
		for range 3 {
			p.Query("count", "SELECT COUNT(*) FROM t", nil, func(sqldb.Row) error { return nil })
		}
		if err := db.Run(t.Context(), &p); err != nil || trips.Load()-before != 1 {
			t.Errorf("three reads: %d round trips: %v", trips.Load()-before, err)
		}
		if n := number(t, db, "SELECT COUNT(*) FROM t"); n != 10 {
			t.Errorf("%d rows are committed", n)
		}
	})
}

// TestCockroachRetries: wherever a conflict ends an attempt, the transaction goes on from its
// savepoint, on the same connection, and commits once.
func TestCockroachRetries(t *testing.T) {
	t.Parallel()
	database := testenv.Database(t, testenv.Postgres)
	direct := open(t, database)
	exec(t, direct, "CREATE TABLE t (n BIGINT)")
	exec(t, direct, "CREATE SEQUENCE tries")
	// A sequence isn't rolled back. lose is as long as the RELEASE that it stands for.
	exec(t, direct, `CREATE FUNCTION lose() RETURNS BOOLEAN LANGUAGE plpgsql AS
		'BEGIN IF nextval(''tries'') % 3 <> 0 THEN RAISE EXCEPTION USING ERRCODE = ''40001''; END IF; RETURN true; END'`)
	url, trips := countTrips(t, database, "exec")
	losing, losingTrips := countTrips(t, losingRelease(t, database), "exec")
	insert := func(n int64) *sqldb.Pipeline {
		var p sqldb.Pipeline
		p.Exec("insert", "INSERT INTO t VALUES ($1)", []any{n}, nil)
		return &p
	}
	lose := func(p *sqldb.Pipeline) *sqldb.Pipeline {
		p.Exec("lose", "SELECT lose()", nil, nil)
		return p
	}
	for what, tt := range map[string]struct {
		url   string
		trips interface{ Load() int64 }
		want  int64 // two lost attempts, two times back to the savepoint, the third attempt
		do    func(tx *sqldb.Tx) error
	}{
		"awaited": {url, trips, 6, func(tx *sqldb.Tx) error {
			return errors.Join(tx.Run(t.Context(), lose(insert(1))), tx.RunAtCommit(t.Context(), insert(2)))
		}},
		"at the commit": {url, trips, 5, func(tx *sqldb.Tx) error {
			return tx.RunAtCommit(t.Context(), lose(insert(1)))
		}},
		"counted": {url, trips, 6, func(tx *sqldb.Tx) error {
			p := lose(insert(1))
			p.Must("update", "UPDATE t SET n = 2 WHERE n = $1", []any{int64(1)}, 1, errors.New("there is no such row"))
			return tx.RunAtCommit(t.Context(), p)
		}},
		"the RELEASE": {losing, losingTrips, 5, func(tx *sqldb.Tx) error {
			return tx.RunAtCommit(t.Context(), insert(1))
		}},
	} {
		exec(t, direct, "DELETE FROM t")
		exec(t, direct, "ALTER SEQUENCE tries RESTART")
		db := takenForCockroach(t, tt.url)
		session := number(t, db, "SELECT pg_backend_pid()")
		before, runs := tt.trips.Load(), 0
		err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
			runs++
			return tt.do(tx)
		})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := tt.trips.Load() - before; got != tt.want || runs != 3 {
			t.Errorf("%s: %d round trips, want %d; %d attempts", what, got, tt.want, runs)
		}
		if again := number(t, db, "SELECT pg_backend_pid()"); again != session {
			t.Errorf("%s: the connection is another one", what)
		}
		want := map[bool]int64{true: 3, false: 1}[what == "awaited"]
		if what == "counted" {
			want = 2
		}
		if got := number(t, direct, "SELECT COALESCE(SUM(n), 0) FROM t"); got != want {
			t.Errorf("%s: the sum is %d, want %d", what, got, want)
		}
	}
}

// losingRelease passes connections on to a server, which gets a call of lose for each RELEASE.
func losingRelease(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go passOnLosing(client, server)
		}
	}()
	u.Host = listener.Addr().String()
	query := u.Query()
	query.Set("sslmode", "disable")
	u.RawQuery = query.Encode()
	return u.String()
}

func passOnLosing(client net.Conn, address string) {
	defer func() { _ = client.Close() }()
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	release := []byte("RELEASE SAVEPOINT cockroach_restart")
	loses := append([]byte("SELECT lose()"), bytes.Repeat([]byte(" "), len(release)-len("SELECT lose()"))...)
	const length = 4
	for kind := 0; ; kind = 1 { // the first message has no kind
		message := make([]byte, kind+length)
		if _, err := io.ReadFull(client, message); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(message[kind:])-length)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		if _, err := server.Write(slices.Concat(message, bytes.ReplaceAll(body, release, loses))); err != nil {
			return
		}
	}
}

// TestCockroachFails: an error that is not a conflict ends the transaction: nothing is committed,
// the error says so for sure, and the connection goes on.
func TestCockroachFails(t *testing.T) {
	t.Parallel()
	ours := errors.New("ours")
	eachCockroach(t, func(t *testing.T, url string, open func(url string) *sqldb.DB) {
		db := open(url)
		exec(t, db, "CREATE TABLE t (n BIGINT PRIMARY KEY)")
		exec(t, db, "INSERT INTO t VALUES (1)")
		for what, tt := range map[string]struct {
			do func(tx *sqldb.Tx) error
			is func(error) bool
		}{
			"awaited":       {func(tx *sqldb.Tx) error { return tx.Run(t.Context(), twoInserts()) }, sqldb.Duplicate},
			"at the commit": {func(tx *sqldb.Tx) error { return tx.RunAtCommit(t.Context(), twoInserts()) }, sqldb.Duplicate},
			"counted": {func(tx *sqldb.Tx) error {
				var p sqldb.Pipeline
				p.Exec("insert", "INSERT INTO t VALUES (2)", nil, nil)
				p.Must("update", "UPDATE t SET n = n WHERE n = $1", []any{int64(9)}, 1, ours)
				return tx.RunAtCommit(t.Context(), &p)
			}, func(err error) bool { return errors.Is(err, ours) }},
			"by the caller": {func(tx *sqldb.Tx) error {
				return errors.Join(execTx(t.Context(), tx, "INSERT INTO t VALUES (2)"), ours)
			}, func(err error) bool { return errors.Is(err, ours) }},
			"and nobody noticed": {func(tx *sqldb.Tx) error {
				_ = execTx(t.Context(), tx, "INSERT INTO t VALUES (1)")
				return nil
			}, func(err error) bool { return err != nil }},
		} {
			err := db.InTx(t.Context(), tt.do)
			if !tt.is(err) || errors.Is(err, sqldb.ErrUnknownOutcome) || sqldb.Transient(err) {
				t.Errorf("%s: got %v", what, err)
			}
			if n := number(t, db, "SELECT COUNT(*) FROM t"); n != 1 {
				t.Errorf("%s: %d rows are committed", what, n)
			}
		}
		if n := db.Writer().Stats().OpenConnections; n != 1 {
			t.Errorf("%d connections are open", n)
		}
	})
}
