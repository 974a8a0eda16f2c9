package sqldb_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestPooler: statements are prepared, except where a connection pooler may give the next
// transaction another connection. The values of rows come through in every mode that a URL may ask
// for.
func TestPooler(t *testing.T) {
	t.Parallel()
	direct := testenv.Database(t, testenv.Postgres)
	for _, tt := range []struct {
		name, url string
		prepared  bool
	}{
		{"direct", direct, true},
		{"pooled", pooler(t, direct, ""), false},
		{"pooled-with-statements", pooler(t, direct, "cache_statement"), true},
		{"pooled-simple", pooler(t, direct, "simple_protocol"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := open(t, tt.url)
			for range 2 {
				checkNulls(t, db)
			}
			if n := number(t, db, "SELECT COUNT(*) FROM pg_prepared_statements"); (n > 0) != tt.prepared {
				t.Errorf("%d statements are prepared", n)
			}
		})
	}
}

// TestPlansAreKept: a statement about one row isn't planned each time, although a plan for one row
// is cheaper.
func TestPlansAreKept(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.Postgres))
	exec(t, db, "CREATE TABLE t (k TEXT PRIMARY KEY, n BIGINT)")
	exec(t, db, "INSERT INTO t SELECT 'k' || i, i FROM generate_series(1, 1000) AS i")
	exec(t, db, "ANALYZE t")
	for range 10 {
		for part := range db.Engine().Rows(1, []sqldb.Type{sqldb.Text}, []any{"k7"}) {
			if n := number(t, db, "SELECT n FROM ("+part.Query+") AS v JOIN t ON k = v.column1", part.Args...); n != 7 {
				t.Fatalf("read %d", n)
			}
		}
	}
	const plans = "SELECT COALESCE(SUM(custom_plans), -1) FROM pg_prepared_statements WHERE statement LIKE '%JOIN t ON%'"
	if n := number(t, db, plans+" AND generic_plans = 10"); n != 0 {
		t.Errorf("planned again %d times", number(t, db, plans))
	}
}

// TestCockroachBehindAPooler: a pooler drops the parameter crdb_version, but the answer to "select
// version()" comes through. CockroachDB gets no setting of PostgreSQL, which it would refuse.
func TestCockroachBehindAPooler(t *testing.T) {
	t.Parallel()
	db := open(t, asCockroach(t, testenv.Database(t, testenv.Postgres), true))
	if db.Engine() != sqldb.Cockroach {
		t.Fatalf("engine %q", db.Engine())
	}
	if n := number(t, db, "SELECT COUNT(*) FROM pg_settings WHERE name = 'enable_seqscan' AND setting = 'off'"); n != 0 {
		t.Error("it was told to plan as PostgreSQL")
	}
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	if err := db.InTx(t.Context(), func(tx *sqldb.Tx) error { return tx.RunAtCommit(t.Context(), twoInserts()) }); err != nil {
		t.Error(err)
	}
	if n := number(t, db, "SELECT COUNT(*) FROM t"); n != 2 {
		t.Errorf("%d rows are committed", n)
	}
}

// TestCockroachWithoutTheDatabase: CockroachDB lets one connect to a database that is not there.
func TestCockroachWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	_, err := sqldb.Open(t.Context(), asCockroach(t, testenv.Database(t, testenv.Postgres), false), discard())
	if !errors.Is(err, sqldb.ErrURL) || sqldb.Transient(err) {
		t.Errorf("got %v", err)
	}
}

// TestRead: a read that CockroachDB ends by a conflict runs again, and no other.
func TestRead(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	for _, tt := range []struct {
		engine sqldb.Engine
		url    string
		state  string
		runs   int
	}{
		{sqldb.Cockroach, asCockroach(t, url, true), "40001", 3},
		{sqldb.Cockroach, asCockroach(t, url, true), "22012", 1},
		{sqldb.Postgres, url, "40001", 1},
	} {
		db := open(t, tt.url)
		runs := 0
		err := db.Read(t.Context(), func() error {
			if runs++; runs == 3 {
				return nil
			}
			_, err := db.Reader().ExecContext(t.Context(), "DO 'BEGIN RAISE EXCEPTION USING ERRCODE = ''"+tt.state+"''; END'")
			return fmt.Errorf("read: %w", err)
		})
		if db.Engine() != tt.engine || runs != tt.runs || (err == nil) != (runs == 3) {
			t.Errorf("%s, %s: %d runs: %v", tt.engine, tt.state, runs, err)
		}
	}
}

// asCockroach makes a server say that it is CockroachDB, with or without the database.
func asCockroach(t *testing.T, database string, hasIt bool) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	name := []byte(strings.TrimPrefix(u.Path, "/"))
	return between(t, database, "", func(kind byte, body []byte) (instead []byte) {
		const row = 'D'
		if kind != row {
			return nil
		}
		if i := bytes.Index(body, []byte("PostgreSQL ")); i >= 0 {
			copy(body[i:], "CockroachDB")
		}
		if bytes.Contains(body, name) && !hasIt {
			body[len(body)-1] = 'f'
		}
		return nil
	})
}

// checkNulls reads back rows with and without NULLs.
func checkNulls(t *testing.T, db *sqldb.DB) {
	t.Helper()
	values := []any{"a,\"{}'\\", int64(-1), []byte{0, 255}, nil, nil, nil, "", int64(1 << 60), []byte{}}
	for part := range db.Engine().Rows(1, []sqldb.Type{sqldb.Text, sqldb.Int, sqldb.Bytes}, values) {
		rows, err := db.Reader().QueryContext(t.Context(), "SELECT column1, column2, column3 FROM ("+part.Query+") AS v", part.Args...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = rows.Close() })
		var got []any
		for rows.Next() {
			var text *string
			var number *int64
			var bytes []byte
			if err := rows.Scan(&text, &number, &bytes); err != nil {
				t.Fatal(err)
			}
			if text == nil && number == nil && bytes == nil {
				got = append(got, nil, nil, nil)
			} else {
				got = append(got, *text, *number, string(bytes))
			}
		}
		want := []any{"a,\"{}'\\", int64(-1), "\x00\xff", nil, nil, nil, "", int64(1 << 60), ""}
		if !slices.Equal(got, want) || rows.Err() != nil {
			t.Errorf("got %q: %v", got, rows.Err())
		}
	}
}

// pooler puts between a database and its clients what they see of a connection pooler: a process id
// that is not the server's. It returns the database's URL there, with this mode of execution unless
// mode is empty.
func pooler(t *testing.T, database, mode string) string {
	t.Helper()
	return between(t, database, mode, func(kind byte, body []byte) (instead []byte) {
		const keyData = 'K'
		if kind == keyData {
			binary.BigEndian.PutUint32(body, 1<<31-1)
		}
		return nil
	})
}

// countTrips counts how often the server says that it is ready for the next query, except after an
// empty one: the driver sends that to a connection that was idle for a second.
func countTrips(t *testing.T, database, mode string) (url string, trips *atomic.Int64) {
	t.Helper()
	trips = &atomic.Int64{}
	return between(t, database, mode, func(kind byte, _ []byte) (instead []byte) {
		const ready, empty = 'Z', 'I'
		switch kind {
		case ready:
			trips.Add(1)
		case empty:
			trips.Add(-1)
		}
		return nil
	}), trips
}

// TestPoolerLosesTheServer: a pooler that has lost the server sends an error instead of the missing
// answers. The COMMIT that went with the statements may have been done all the same.
func TestPoolerLosesTheServer(t *testing.T) {
	t.Parallel()
	direct := testenv.Database(t, testenv.Postgres)
	var lost atomic.Bool
	db := open(t, between(t, direct, "exec", func(byte, []byte) (instead []byte) {
		if !lost.Load() {
			return nil
		}
		const fatal = "SFATAL\x00VFATAL\x00C08P01\x00Mserver conn crashed?\x00\x00"
		return append(binary.BigEndian.AppendUint32([]byte{'E'}, uint32(len(fatal)+4)), fatal...)
	}))
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "DELETE FROM t") // the driver looks at a connection before it is used for the second time
	lost.Store(true)
	err := db.InTx(t.Context(), func(tx *sqldb.Tx) error { return tx.RunAtCommit(t.Context(), twoInserts()) })
	if !errors.Is(err, sqldb.ErrUnknownOutcome) || !sqldb.Transient(err) {
		t.Errorf("got %v", err)
	}
	if n := number(t, open(t, direct), "SELECT COUNT(*) FROM t"); n != 2 {
		t.Errorf("%d rows are committed", n)
	}
}

// between passes connections on to a database. see sees each message of the server, and may replace
// it; after a replaced message, the connection ends.
func between(t *testing.T, database, mode string, see func(kind byte, body []byte) (instead []byte)) string {
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
			go passOn(client, server, see)
		}
	}()
	u.Host = listener.Addr().String()
	query := u.Query()
	query.Set("sslmode", "disable")
	if mode != "" {
		query.Set("default_query_exec_mode", mode)
	}
	u.RawQuery = query.Encode()
	return u.String()
}

func passOn(client net.Conn, address string, see func(kind byte, body []byte) (instead []byte)) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	const kindAndLength, length = 5, 4
	for {
		message := make([]byte, kindAndLength)
		if _, err := io.ReadFull(server, message); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(message[1:])-length)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		if instead := see(message[0], body); instead != nil {
			_, _ = client.Write(instead)
			return
		}
		if _, err := client.Write(slices.Concat(message, body)); err != nil {
			return
		}
	}
}
