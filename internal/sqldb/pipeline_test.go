package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// scanned is a value that reads itself.
type scanned struct{ got any }

// Scan implements sql.Scanner.
func (s *scanned) Scan(v any) error {
	if bytes, ok := v.([]byte); ok {
		v = string(bytes)
	}
	s.got = v
	return nil
}

// TestPipeline: several statements give the same answers as each by itself, on every engine, in a
// transaction and out of one, and however they are sent.
func TestPipeline(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		urls := map[string]string{"direct": url}
		if db := open(t, url); db.Engine() == sqldb.Postgres {
			urls["pooled"], urls["simple"] = pooler(t, url, ""), pooler(t, url, "simple_protocol")
			urls["described"] = pooler(t, url, "cache_describe")
		}
		for name, url := range urls {
			db := open(t, url)
			exec(t, db, "CREATE TABLE "+name+" (k TEXT PRIMARY KEY, n BIGINT, b BYTEA)")
			err := db.InTx(t.Context(), func(tx *sqldb.Tx) error { return writeAndRead(t.Context(), db, tx, name) })
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			var read sqldb.Pipeline
			var keys []string
			for range 2 {
				read.Query("read", "SELECT k FROM "+name+" ORDER BY k", nil, func(row sqldb.Row) error {
					keys = append(keys, "")
					return row.Scan(&keys[len(keys)-1])
				})
			}
			if err := db.Run(t.Context(), &read); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if want := []string{"a", "b", "c", "a", "b", "c"}; !slices.Equal(keys, want) {
				t.Errorf("%s: outside of a transaction: %q", name, keys)
			}
		}
	})
}

// writeAndRead does so in one pipeline, with a last statement for the COMMIT.
func writeAndRead(ctx context.Context, db *sqldb.DB, tx *sqldb.Tx, table string) error {
	var p, last sqldb.Pipeline
	insert := "INSERT INTO " + table + " (k, n, b) "
	var changed int64
	values := []any{"a", int64(-1), []byte{0, 255}, "b", nil, nil}
	for part := range db.Engine().Rows(1, []sqldb.Type{sqldb.Text, sqldb.Int, sqldb.Bytes}, values) {
		p.Exec("insert", insert+part.Query, part.Args, func(n int64) error {
			changed += n
			return nil
		})
	}
	var got []any
	p.Query("read", "SELECT k, n, b, k, n, b FROM "+table+" ORDER BY k", nil, func(row sqldb.Row) error {
		var k string
		var n sql.NullInt64
		var b []byte
		var text, number, bytes scanned
		if err := row.Scan(&k, &n, &b, &text, &number, &bytes); err != nil {
			return err
		}
		got = append(got, k, n, string(b), b == nil, text.got, number.got, bytes.got)
		return nil
	})
	p.Query("count", "SELECT COUNT(*), COUNT(*) > 1 FROM "+table+" WHERE k = $1", []any{"a"}, func(row sqldb.Row) error {
		var n int
		var yes bool
		err := row.Scan(&n, &yes)
		got = append(got, n, yes)
		return err
	})
	last.Exec("insert another", insert+"VALUES ($1, 2, NULL)", []any{"c"}, nil)
	err := errors.Join(tx.Run(ctx, &p), tx.RunAtCommit(ctx, &last))
	want := []any{
		"a", sql.NullInt64{Int64: -1, Valid: true}, "\x00\xff", false, "a", int64(-1), "\x00\xff",
		"b", sql.NullInt64{}, "", true, "b", nil, nil,
		1, false,
	}
	if err == nil && (!slices.Equal(got, want) || changed != 2) {
		err = fmt.Errorf("got %q, %d changed", got, changed)
	}
	return err
}

// TestPipelineEndsAtAnError: whatever fails, and wherever, nothing is committed, no later statement
// runs, and InTx returns that error. The connection stays usable.
func TestPipelineEndsAtAnError(t *testing.T) {
	t.Parallel()
	ours := errors.New("ours")
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE t (n BIGINT PRIMARY KEY)")
		exec(t, db, "INSERT INTO t VALUES (1), (2), (3)")
		const insert = "INSERT INTO t VALUES ($1)"
		never := func(int64) error { t.Error("the statement after the error was run"); return nil }
		for name, tt := range map[string]struct {
			fill func(p *sqldb.Pipeline)
			is   func(error) bool
		}{
			"duplicate": {func(p *sqldb.Pipeline) { p.Exec("fail", insert, []any{1}, nil) }, sqldb.Duplicate},
			"no such table": {func(p *sqldb.Pipeline) { p.Exec("fail", "INSERT INTO nowhere VALUES ($1)", []any{1}, nil) },
				func(err error) bool { return !sqldb.Transient(err) }},
			"row": {func(p *sqldb.Pipeline) {
				p.Query("fail", "SELECT n FROM t", nil, func(sqldb.Row) error { return ours })
			}, func(err error) bool { return errors.Is(err, ours) }},
			"scan": {func(p *sqldb.Pipeline) {
				p.Query("fail", "SELECT n FROM t", nil, func(row sqldb.Row) error { return row.Scan() })
			}, func(err error) bool { return !sqldb.Transient(err) }},
			"affected": {func(p *sqldb.Pipeline) {
				p.Exec("fail", insert, []any{5}, func(int64) error { return ours })
			}, func(err error) bool { return errors.Is(err, ours) }},
		} {
			for _, first := range []bool{true, false} {
				err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
					var p sqldb.Pipeline
					if !first {
						p.Exec("before", insert, []any{10}, nil)
					}
					tt.fill(&p)
					p.Exec("after", insert, []any{11}, never)
					return tx.Run(t.Context(), &p)
				})
				if err == nil || !tt.is(err) || errors.Is(err, sqldb.ErrUnknownOutcome) || err.Error()[:6] != "fail: " {
					t.Errorf("%s, first %t: %v", name, first, err)
				}
				if n := number(t, db, "SELECT COUNT(*) FROM t"); n != 3 {
					t.Errorf("%s, first %t: %d rows", name, first, n)
				}
			}
		}
	})
}

// TestRunAtCommitFails: InTx returns an error of a statement that goes with the COMMIT, and it is
// not an unknown outcome. A function that must look at a result before the COMMIT is refused.
func TestRunAtCommitFails(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE t (n BIGINT PRIMARY KEY)")
		for _, before := range []bool{true, false} {
			err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
				if before {
					if err := execTx(t.Context(), tx, "INSERT INTO t VALUES (1)"); err != nil {
						return err
					}
				}
				var p sqldb.Pipeline
				for range 2 {
					p.Exec("fail", "INSERT INTO t VALUES ($1)", []any{2}, nil)
				}
				return tx.RunAtCommit(t.Context(), &p)
			})
			if !sqldb.Duplicate(err) || errors.Is(err, sqldb.ErrUnknownOutcome) {
				t.Errorf("%v", err)
			}
			if n := number(t, db, "SELECT COUNT(*) FROM t"); n != 0 {
				t.Errorf("%d rows", n)
			}
		}
		err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
			var p sqldb.Pipeline
			p.Exec("look", "INSERT INTO t VALUES (1)", nil, func(int64) error { return nil })
			return tx.RunAtCommit(t.Context(), &p)
		})
		if err == nil {
			t.Error("a function was taken")
		}
	})
}

// TestMust: if a statement changes another number of rows than it must, nothing is committed, and
// InTx returns the given error and no other. This holds if the answer is awaited, if the statement
// goes with the COMMIT, and in every mode of the driver.
func TestMust(t *testing.T) {
	t.Parallel()
	ours, never := errors.New("ours"), errors.New("never")
	testenv.EachEngine(t, func(t *testing.T, url string) {
		urls := map[string]string{"direct": url}
		if db := open(t, url); db.Engine() == sqldb.Postgres {
			urls["pooled"], urls["simple"] = pooler(t, url, ""), pooler(t, url, "simple_protocol")
			urls["described"] = pooler(t, url, "cache_describe")
		}
		for name, url := range urls {
			db := openTables(t, url)
			exec(t, db, "CREATE TABLE "+name+" (k BIGINT PRIMARY KEY, n BIGINT)")
			exec(t, db, "INSERT INTO "+name+" VALUES (1, 0), (2, 0), (3, 0)")
			update := "UPDATE " + name + " SET n = n + 1 WHERE k >= $1"
			for run, send := range map[string]func(*sqldb.Tx, context.Context, *sqldb.Pipeline) error{
				"awaited":   (*sqldb.Tx).Run,
				"at commit": (*sqldb.Tx).RunAtCommit,
			} {
				for _, tt := range []struct {
					from, rows int64
					want       error
				}{{2, 2, nil}, {2, 1, ours}, {2, 3, ours}, {4, 0, nil}, {4, 1, ours}} {
					was := number(t, db, "SELECT SUM(n) FROM "+name)
					err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
						var p sqldb.Pipeline
						p.Must("before", "INSERT INTO "+name+" VALUES ($1, $2) ON CONFLICT DO NOTHING", []any{1, 5}, 0, never)
						p.Must("count", update, []any{tt.from}, tt.rows, ours)
						p.Must("after", "DELETE FROM "+name+" WHERE k = $1", []any{9}, 0, never)
						return send(tx, t.Context(), &p)
					})
					if !errors.Is(err, tt.want) || err != nil && err.Error() != "count: ours" {
						t.Errorf("%s, %s, %d rows from %d on: %v", name, run, tt.rows, tt.from, err)
					}
					changed := number(t, db, "SELECT SUM(n) FROM "+name) - was
					if tt.want == nil && changed != tt.rows || tt.want != nil && changed != 0 {
						t.Errorf("%s, %s, %d rows from %d on: %d are changed", name, run, tt.rows, tt.from, changed)
					}
				}
			}
		}
	})
}

// TestOutcomeAtCommit: an error of a statement that goes with the COMMIT is definite, whatever its
// class, because the server skips the COMMIT. The same error of the COMMIT leaves the outcome open.
// The connection stays.
func TestOutcomeAtCommit(t *testing.T) {
	t.Parallel()
	for name, opened := range map[string]func(url string) *sqldb.DB{
		"postgres":            func(url string) *sqldb.DB { return open(t, url) },
		"taken for cockroach": func(url string) *sqldb.DB { return takenForCockroach(t, url) },
	} {
		checkOutcomeAtCommit(t, name, opened(testenv.Database(t, testenv.Postgres)))
	}
}

func checkOutcomeAtCommit(t *testing.T, name string, db *sqldb.DB) {
	t.Helper()
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, `CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN RAISE EXCEPTION USING ERRCODE = ''53100''; END'`)
	for _, tt := range []struct {
		trigger string
		unknown bool
	}{
		{"TRIGGER full_disk BEFORE INSERT", false},
		{"CONSTRAINT TRIGGER full_disk AFTER INSERT", true},
	} {
		timing := map[bool]string{true: "DEFERRABLE INITIALLY DEFERRED"}[tt.unknown]
		exec(t, db, "CREATE "+tt.trigger+" ON t "+timing+" FOR EACH ROW EXECUTE FUNCTION full_disk()")
		before := number(t, db, "SELECT pg_backend_pid()")
		err := db.InTx(t.Context(), func(tx *sqldb.Tx) error { return tx.RunAtCommit(t.Context(), twoInserts()) })
		if errors.Is(err, sqldb.ErrUnknownOutcome) != tt.unknown || !sqldb.Transient(err) {
			t.Errorf("%s, %s: %v", name, tt.trigger, err)
		}
		if after := number(t, db, "SELECT pg_backend_pid()"); after != before {
			t.Errorf("%s, %s: the connection is given up", name, tt.trigger)
		}
		exec(t, db, "DROP TRIGGER full_disk ON t")
	}
}

// TestLateBegin: a transaction whose first statement fails stays a transaction: later statements
// don't run outside of it.
func TestLateBegin(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.Postgres))
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	for name, first := range map[string]func(tx *sqldb.Tx) error{
		"failed":   func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, "SELECT 1/0") },
		"unknown":  func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, "SELECT nothing") },
		"argument": func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, "SELECT $1::BIGINT", "x") },
	} {
		err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
			if first(tx) == nil {
				return errors.New("no error")
			}
			_ = execTx(t.Context(), tx, "INSERT INTO t VALUES (1)")
			var p sqldb.Pipeline
			p.Exec("", "INSERT INTO t VALUES (2)", nil, nil)
			_ = tx.RunAtCommit(t.Context(), &p)
			return nil
		})
		if err == nil || errors.Is(err, sqldb.ErrUnknownOutcome) || sqldb.Transient(err) {
			t.Errorf("%s: %v", name, err)
		}
		if n := number(t, db, "SELECT COUNT(*) FROM t"); n != 0 {
			t.Errorf("%s: %d rows", name, n)
		}
	}
	err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
		level := ""
		err := tx.QueryRow(t.Context(), "SHOW transaction_isolation").Scan(&level)
		if level != "serializable" {
			t.Errorf("the level is %q", level)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := db.InTx(t.Context(), func(*sqldb.Tx) error { return nil }); err != nil {
		t.Errorf("a transaction of nothing: %v", err)
	}
}

// TestPipelineEndsWithItsContext: if its context ends, the transaction is gone, and the next one
// finds a connection.
func TestPipelineEndsWithItsContext(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.Postgres))
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := db.InTx(ctx, func(tx *sqldb.Tx) error {
		var p sqldb.Pipeline
		p.Exec("insert", "INSERT INTO t VALUES (1)", nil, nil)
		p.Exec("wait", "SELECT pg_sleep(60)", nil, nil)
		return tx.Run(ctx, &p)
	})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, sqldb.ErrUnknownOutcome) {
		t.Errorf("%v", err)
	}
	if n := number(t, db, "SELECT COUNT(*) FROM t"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// TestRoundTrips: statements that should go together do.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			url, trips := countTrips(t, testenv.Database(t, testenv.Postgres), mode)
			db := openTables(t, url)
			exec(t, db, "CREATE TABLE t (n BIGINT)")
			for _, tt := range []struct {
				what string
				want int64
				do   func() error
			}{
				{"nothing", 0, func() error { return db.InTx(t.Context(), func(*sqldb.Tx) error { return nil }) }},
				{"BEGIN with a statement, and COMMIT", 2, func() error {
					return db.InTx(t.Context(), func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, "INSERT INTO t VALUES ($1)", 1) })
				}},
				{"BEGIN with two statements, two with COMMIT", 2, func() error {
					return db.InTx(t.Context(), func(tx *sqldb.Tx) error {
						return errors.Join(tx.Run(t.Context(), twoInserts()), tx.RunAtCommit(t.Context(), twoInserts()))
					})
				}},
				{"all with COMMIT", 1, func() error {
					return db.InTx(t.Context(), func(tx *sqldb.Tx) error { return tx.RunAtCommit(t.Context(), twoInserts()) })
				}},
				{"all with COMMIT, and counted", 1, func() error {
					return db.InTx(t.Context(), func(tx *sqldb.Tx) error {
						p := twoInserts()
						p.Must("update", "UPDATE t SET n = n WHERE n = $1", []any{0}, 0, errors.New("there is no such row"))
						return tx.RunAtCommit(t.Context(), p)
					})
				}},
				{"two reads", 1, func() error {
					var p sqldb.Pipeline
					p.Query("count", "SELECT COUNT(*) FROM t", nil, func(sqldb.Row) error { return nil })
					p.Query("read", "SELECT n FROM t", nil, func(sqldb.Row) error { return nil })
					return db.Run(t.Context(), &p)
				}},
			} {
				var before int64
				for range 2 { // the first time, statements are prepared
					before = trips.Load()
					if err := tt.do(); err != nil {
						t.Fatalf("%s: %v", tt.what, err)
					}
				}
				if got := trips.Load() - before; got != tt.want {
					t.Errorf("%s: %d round trips, want %d", tt.what, got, tt.want)
				}
			}
		})
	}
}

// TestRoundTripsAfterALoss: after a lost race, the statements need not be prepared again.
func TestRoundTripsAfterALoss(t *testing.T) {
	t.Parallel()
	ours := errors.New("ours")
	direct := testenv.Database(t, testenv.Postgres)
	exec(t, openTables(t, direct), `CREATE TABLE t (n BIGINT)`)
	exec(t, open(t, direct), `CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN IF NEW.n = 40001 AND nextval(''tries'') % 2 = 1 THEN RAISE EXCEPTION USING ERRCODE = ''40001''; END IF; RETURN NEW; END'`)
	exec(t, open(t, direct), `CREATE SEQUENCE tries`)
	exec(t, open(t, direct), `CREATE TRIGGER lose BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION lose()`)
	for _, mode := range []string{"cache_statement", "cache_describe", "exec", "simple_protocol"} {
		url, trips := countTrips(t, direct, mode)
		db := open(t, url)
		for i, tt := range []struct {
			what         string
			insert, rows int64
			want         error
			trips        int64 // ROLLBACK is one
		}{
			{"the first one", 1, 0, nil, 0}, {"nobody lost", 1, 0, nil, 1},
			{"another number of rows", 1, 1, ours, 2}, {"nobody lost", 1, 0, nil, 1},
			{"a conflict, and another try", 40001, 0, nil, 3}, {"nobody lost", 1, 0, nil, 1},
		} {
			before := trips.Load()
			err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
				var p sqldb.Pipeline
				p.Exec("insert", "INSERT INTO t VALUES ($1)", []any{tt.insert}, nil)
				p.Must("update", "UPDATE t SET n = n WHERE n = $1", []any{0}, tt.rows, ours)
				return tx.RunAtCommit(t.Context(), &p)
			})
			if !errors.Is(err, tt.want) {
				t.Fatalf("%s, %s: %v", mode, tt.what, err)
			}
			if got := trips.Load() - before; i > 0 && got != tt.trips {
				t.Errorf("%s, %s: %d round trips, want %d", mode, tt.what, got, tt.trips)
			}
		}
	}
}

func twoInserts() *sqldb.Pipeline {
	var p sqldb.Pipeline
	for range 2 {
		p.Exec("insert", "INSERT INTO t VALUES ($1)", []any{1}, nil)
	}
	return &p
}
