package sqldb_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pressly/goose/v3/lock"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// files makes a set of migrations, the same for all engines.
func files(byName map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, statement := range byName {
		text := "-- +goose NO TRANSACTION\n-- +goose Up\n" + statement + ";\n"
		for _, folder := range []string{"sqlite/", "postgres/"} {
			fsys[folder+name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return fsys
}

func firstFiles() map[string]string {
	return map[string]string{
		"00001_a.sql": "CREATE TABLE IF NOT EXISTS a (n BIGINT PRIMARY KEY)",
		"00002_b.sql": "CREATE INDEX IF NOT EXISTS a_by_n ON a (n)",
		"00003_c.sql": "INSERT INTO a VALUES (1)", // not idempotent: shows a second run
	}
}

func TestMigrateByManyAtOnce(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		together(t, 6, func() error {
			db, err := sqldb.Open(t.Context(), url, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			return errors.Join(db.Migrate(t.Context(), sqldb.Registry, files(firstFiles())), db.Close())
		})
		db := open(t, url)
		if n := number(t, db, "SELECT count(*) FROM goose_db_version"); n != 4 {
			t.Errorf("%d versions are noted, want 0 to 3 once each", n)
		}
	})
}

func TestMigrateAddsWhatIsNew(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		all := firstFiles()
		for range 2 {
			if err := db.Migrate(t.Context(), sqldb.Registry, files(all)); err != nil {
				t.Fatal(err)
			}
		}
		maps.Copy(all, map[string]string{"00004_d.sql": "ALTER TABLE a ADD COLUMN m BIGINT"})
		if err := db.Migrate(t.Context(), sqldb.Registry, files(all)); err != nil {
			t.Fatal(err)
		}
		exec(t, db, "INSERT INTO a (n, m) VALUES (2, 3)")
	})
}

func TestMigrateResumesAfterAFailure(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		all := firstFiles()
		all["00004_d.sql"] = "CREATE TABLE ("
		err := db.Migrate(t.Context(), sqldb.Registry, files(all))
		if err == nil || sqldb.Transient(err) {
			t.Fatalf("got %v", err)
		}
		all["00004_d.sql"] = "CREATE TABLE d (n BIGINT)"
		if err := db.Migrate(t.Context(), sqldb.Registry, files(all)); err != nil {
			t.Fatal(err)
		}
		if n := number(t, db, "SELECT count(*) FROM a, goose_db_version"); n != 5 {
			t.Errorf("got %d rows, want 1 × 5", n)
		}
	})
}

// A CockroachDB process can die between making goose's table and its first row.
func TestMigrateMendsAnEmptyVersionTable(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.Postgres))
	if err := db.Migrate(t.Context(), sqldb.Registry, files(map[string]string{"00001_a.sql": firstFiles()["00001_a.sql"]})); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "DELETE FROM goose_db_version")
	if err := db.Migrate(t.Context(), sqldb.Registry, files(firstFiles())); err != nil {
		t.Error(err)
	}
}

// A process that is killed while it looks at the schema leaves the lock behind, with a lease. There is nothing to migrate,
// so nobody waits for it.
func TestMigrateWithoutNeedTakesNoLock(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	db := open(t, url)
	if err := db.Migrate(t.Context(), sqldb.Registry, files(firstFiles())); err != nil {
		t.Fatal(err)
	}
	killed, err := lock.NewPostgresTableLocker(lock.WithTableLeaseDuration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Lock(t.Context(), db.Writer()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := open(t, url).Migrate(ctx, sqldb.Registry, files(firstFiles())); err != nil {
		t.Errorf("with a complete schema: %v", err)
	}
	if err := killed.Unlock(t.Context(), db.Writer()); err != nil {
		t.Error(err)
	}
}

// TestMigrateMakesItsFunction: a backup of the tables alone lacks the function that checks rows at
// the COMMIT. Without it, no batch could be committed.
func TestMigrateMakesItsFunction(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.Postgres))
	migrate := func() error { return db.Migrate(t.Context(), sqldb.Registry, files(firstFiles())) }
	if err := migrate(); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "DROP FUNCTION omi_must_change")
	if err := migrate(); err != nil {
		t.Fatal(err)
	}
	if err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
		var p sqldb.Pipeline
		p.Must("", "INSERT INTO a VALUES (2)", nil, 1, errors.New("another number"))
		return tx.RunAtCommit(t.Context(), &p)
	}); err != nil {
		t.Error(err)
	}
}

// TestMigrateForbiddenFunction: a role that may not call the function is told at the start.
func TestMigrateForbiddenFunction(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	db := open(t, url)
	if err := db.Migrate(t.Context(), sqldb.Registry, files(firstFiles())); err != nil {
		t.Fatal(err)
	}
	role := "omi_" + strings.ToLower(rand.Text())
	exec(t, db, "CREATE ROLE "+role)
	exec(t, db, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO "+role)
	exec(t, db, "REVOKE EXECUTE ON FUNCTION omi_must_change FROM PUBLIC")
	err := open(t, url+"?role="+role).Migrate(t.Context(), sqldb.Registry, files(firstFiles()))
	if !errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), "EXECUTE") {
		t.Errorf("got %v", err)
	}
	exec(t, db, "DROP OWNED BY "+role)
	exec(t, db, "DROP ROLE "+role)
}

func TestMigrateWithoutFiles(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		if err := open(t, url).Migrate(t.Context(), sqldb.Registry, fstest.MapFS{}); err == nil {
			t.Error("no error")
		}
	})
}
