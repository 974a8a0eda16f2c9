package subscriber_test

import (
	"context"
	"database/sql"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"testing"
	"testing/fstest"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/schema"
)

// TestMigrated: a database of the first schema, with what it had applied, comes up with all of it, as Auth's and as Billing's:
// nothing that was applied then has an effect again, and what is new has one.
func TestMigrated(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(context.Context, string, *slog.Logger) (*subscriber.Store, error){
		"billing": subscriber.OpenStore, "auth": subscriber.OpenAuthStore,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testenv.EachEngine(t, func(t *testing.T, url string) {
				a, b, c := subtest.NewService(t, "a"), subtest.NewService(t, "b"), subtest.NewService(t, "c")
				a.Bind(start)
				a.Rotate(start+10, 300)
				b.Bind(start)
				b.Reset(start + 20)
				c.Bind(start)
				fillFirstSchema(t, url, schema.Subscriber(), a, b, c)
				store, err := open(t.Context(), url, discard())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = store.Close() })
				checkOldRelease(t, url)
				a.Rotate(start+30, 300)
				checkMigrated(t, store, a, b)
				c.Rotate(start+30, 300)
				if fresh, before := apply(t, store, c.Events[1]), apply(t, store, c.Events[0]); len(fresh) != 1 || len(before) != 0 {
					t.Errorf("of a service that is remembered, %d new events and %d of before have an effect", len(fresh), len(before))
				}
			})
		})
	}
}

// TestMigrationKilledBetween: who migrates can be killed between any statement and the note that it was run. Whoever comes next
// runs it again. Meanwhile a release of before can apply nothing, and is told nothing of services that is not so: it finds them
// all, or gets an error.
func TestMigrationKilledBetween(t *testing.T) {
	t.Parallel()
	for owner, files := range map[sqldb.Owner]fs.FS{sqldb.Billing: schema.Subscriber(), sqldb.Auth: schema.Auth()} {
		t.Run(string(owner), func(t *testing.T) {
			t.Parallel()
			url := testenv.Database(t, testenv.Postgres) // with SQLite, all of it is one transaction
			a, b := subtest.NewService(t, "a"), subtest.NewService(t, "b")
			a.Bind(start)
			a.Rotate(start+10, 300)
			b.Bind(start)
			b.Reset(start + 20)
			db := fillFirstSchema(t, url, files, a, b)
			names, err := fs.Glob(files, "postgres/*.sql")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names[8:] {
				version := path.Base(name)[:len("00000")]
				for range 2 {
					if err := db.Migrate(t.Context(), owner, firstSchema(t, files, version)); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					checkBefore(t, db, version, a)
					const forget = "DELETE FROM goose_db_version WHERE version_id = CAST($1 AS BIGINT)"
					if _, err := db.Writer().ExecContext(t.Context(), forget, version); err != nil {
						t.Fatal(err)
					}
				}
				if err := db.Migrate(t.Context(), owner, firstSchema(t, files, version)); err != nil {
					t.Fatal(err)
				}
			}
			open := openStore
			if owner == sqldb.Auth {
				open = openAuthStore
			}
			store := open(t, url)
			a.Rotate(start+30, 300)
			checkMigrated(t, store, a, b)
		})
	}
}

// checkOldRelease does what the last release does with an event, where services had an index of whole names: on SQLite, it must not
// pass now.
func checkOldRelease(t *testing.T, url string) {
	t.Helper()
	if !strings.HasPrefix(url, testenv.SQLite) {
		return
	}
	db := openDB(t, url)
	const insert = `INSERT INTO services (id, target, head, max_sequence, filled, sequenced) VALUES (NULL, 'org.a.b', 1, 1, 0, 1)
		ON CONFLICT (target) DO UPDATE SET head = excluded.head RETURNING id, target`
	if _, err := db.Writer().ExecContext(t.Context(), insert); err == nil {
		t.Error("a release of before can apply an event")
	}
}

// checkBefore does what a release of before does, once the tables are renamed.
func checkBefore(t *testing.T, db *sqldb.DB, version string, s *subtest.Service) {
	t.Helper()
	var found int
	if err := db.Reader().QueryRowContext(t.Context(), "SELECT count(*) FROM services").Scan(&found); err == nil && found != 2 {
		t.Errorf("after %s, %d services are found", version, found)
	}
	if version < "00014" {
		return
	}
	k := s.Keyring()
	err := db.InTx(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), "INSERT INTO keys (target, public_key, position, from_time, end_time) VALUES ($1, $2, 1, 1, 1)",
			"new", k.Keys[0].PublicKey.Bytes())
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(t.Context(), "INSERT INTO services (target, head, max_sequence, filled, sequenced) VALUES ('new', 1, 1, 0, 1)")
		return err
	})
	if err == nil {
		t.Errorf("after %s, a release of before can apply an event", version)
	}
}

func checkMigrated(t *testing.T, store *subscriber.Store, a, b *subtest.Service) {
	t.Helper()
	newest := a.Events[2]
	if has, err := store.HasApplied(t.Context(), &a.Events[1]); err != nil || !has {
		t.Errorf("an event of before is not known: %v", err)
	}
	if has, err := store.HasApplied(t.Context(), &newest); err != nil || has {
		t.Errorf("an event that has not come yet is known: %v", err)
	}
	for range 2 {
		if fresh := apply(t, store, a.Events[:2]...); len(fresh) != 0 {
			t.Errorf("%d events of before have an effect again", len(fresh))
		}
	}
	if fresh := apply(t, store, append(b.Events, a.Events...)...); len(fresh) != 1 || fresh[0].Nonce != newest.Nonce {
		t.Errorf("%d events are new, want the newest alone", len(fresh))
	}
	for _, s := range []*subtest.Service{a, b} {
		got := all(t, store)[s.Target]
		if diff := diffKeyrings(s.Keyring(), got.Keyring); diff != "" || got.Gap || got.Sequence != int64(len(s.Events)) {
			t.Errorf("%s: sequence %d, gap %t\n%s", s.Target, got.Sequence, got.Gap, diff)
		}
		for _, key := range s.Keys {
			if owner, found, err := store.FindKey(t.Context(), key.Public()); err != nil || !found || owner.Target != s.Target {
				t.Errorf("the owner of a key: %+v, %t, %v", owner, found, err)
			}
		}
	}
}

// fillFirstSchema makes what a process of the first schema would have, after all events of these services.
func fillFirstSchema(t *testing.T, url string, files fs.FS, services ...*subtest.Service) *sqldb.DB {
	t.Helper()
	db := openDB(t, url)
	if err := db.Migrate(t.Context(), sqldb.Billing, firstSchema(t, files, "00008")); err != nil {
		t.Fatal(err)
	}
	insert := func(table string, values ...any) {
		t.Helper()
		for row := range db.Engine().Rows(1, typesOf(values), values) {
			if _, err := db.Writer().ExecContext(t.Context(), "INSERT INTO "+table+" "+row.Query, row.Args...); err != nil {
				t.Fatalf("%s: %v", table, err)
			}
		}
	}
	for _, s := range services {
		k := s.Keyring()
		for i := range s.Events {
			insert("applied", s.Events[i].Nonce.String())
		}
		for _, key := range k.Keys {
			insert("keys", s.Target.String(), key.PublicKey.Bytes(), key.Position, key.From, key.End)
		}
		for _, c := range k.Cutoffs {
			insert("cutoffs", s.Target.String(), c.Order, c.Time)
		}
		insert("services", s.Target.String(), k.Head, k.Head, int64(0), int64(len(s.Events)))
	}
	return db
}

func typesOf(values []any) (types []sqldb.Type) {
	for _, v := range values {
		switch v.(type) {
		case string:
			types = append(types, sqldb.Text)
		case []byte:
			types = append(types, sqldb.Bytes)
		default:
			types = append(types, sqldb.Int)
		}
	}
	return types
}

// firstSchema returns the migrations up to this one.
func firstSchema(t *testing.T, all fs.FS, last string) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	for _, engine := range []string{"sqlite", "postgres"} {
		names, err := fs.Glob(all, engine+"/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if path.Base(name)[:len(last)] > last {
				continue
			}
			text, err := fs.ReadFile(all, name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = &fstest.MapFile{Data: text}
		}
	}
	return files
}
