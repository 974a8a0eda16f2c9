package sqldb_test

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"testing"
	"testing/fstest"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/schema"
)

func schemas() map[sqldb.Owner]fs.FS {
	return map[sqldb.Owner]fs.FS{sqldb.Registry: schema.Registry(), sqldb.Auth: schema.Auth(), sqldb.Billing: schema.Billing()}
}

// upTo is a schema without the migrations after last.
func upTo(t *testing.T, last string, all fs.FS) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	for _, folder := range []string{"sqlite", "postgres"} {
		names, err := fs.Glob(all, folder+"/*.sql")
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

// TestOwner: a process migrates or reads no other process's database, not even one whose migrations
// were interrupted. That stays as it is, and its owner goes on with it.
func TestOwner(t *testing.T) {
	t.Parallel()
	for _, engine := range testenv.Engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			databases := testenv.Databases(t, engine)
			for owner, all := range schemas() {
				for _, last := range []string{"00001", "99999"} {
					db := open(t, databases())
					if err := db.Migrate(t.Context(), owner, upTo(t, last, all)); err != nil {
						t.Fatal(err)
					}
					checkRefused(t, db, owner)
					if err := db.Migrate(t.Context(), owner, all); err != nil {
						t.Errorf("%s own database after %s: %v", owner, last, err)
					}
				}
			}
		})
	}
}

func checkRefused(t *testing.T, db *sqldb.DB, owner sqldb.Owner) {
	t.Helper()
	versions := number(t, db, "SELECT COUNT(*) FROM goose_db_version")
	for other, theirs := range schemas() {
		if other == owner {
			continue
		}
		want := "this database is " + owner.String() + ", not " + other.String()
		for _, err := range []error{db.Check(t.Context(), other, theirs), db.Migrate(t.Context(), other, theirs)} {
			if !errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
	}
	if now := number(t, db, "SELECT COUNT(*) FROM goose_db_version"); now != versions {
		t.Errorf("%s database has %d versions, and had %d", owner, now, versions)
	}
}

// TestOwnerUnknown: a database with migrations and no note of its owner is from before the first
// release, or another program's. It is refused and stays as it is.
func TestOwnerUnknown(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		if err := db.Migrate(t.Context(), sqldb.Billing, schema.Billing()); err != nil {
			t.Fatal(err)
		}
		exec(t, db, "DROP TABLE database_owner")
		for owner, files := range schemas() {
			for _, err := range []error{db.Check(t.Context(), owner, files), db.Migrate(t.Context(), owner, files)} {
				if !errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), "from before the first release") {
					t.Errorf("as %s: %v", owner, err)
				}
			}
		}
		if _, err := db.Exec(t.Context(), "SELECT owner FROM database_owner"); err == nil {
			t.Error("it has an owner now")
		}
	})
}

// TestOwnerWithoutRow: a server can stop between the owner's table and its row.
func TestOwnerWithoutRow(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE database_owner (id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1), owner TEXT NOT NULL)")
		if err := db.Check(t.Context(), sqldb.Auth, schema.Auth()); !errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), "or it is empty") {
			t.Errorf("got %v", err)
		}
		if err := db.Migrate(t.Context(), sqldb.Auth, schema.Auth()); err != nil {
			t.Error(err)
		}
		if n := number(t, db, "SELECT count(*) FROM database_owner WHERE owner = 'auth'"); n != 1 {
			t.Errorf("it has %d rows that say it is Auth's", n)
		}
	})
}

// TestOwnersAtOnce: if several processes get one new database by mistake, at once, one of them has it.
func TestOwnersAtOnce(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		owners := []sqldb.Owner{sqldb.Registry, sqldb.Auth, sqldb.Billing}
		dbs := []*sqldb.DB{open(t, url), open(t, url), open(t, url)}
		refused := make(chan error, len(owners))
		next := make(chan int, len(owners))
		for i := range owners {
			next <- i
		}
		together(t, len(owners), func() error {
			i := <-next
			refused <- dbs[i].Migrate(t.Context(), owners[i], schemas()[owners[i]])
			return nil
		})
		count := 0
		for range owners {
			if err := <-refused; errors.Is(err, sqldb.ErrURL) {
				count++
			} else if err != nil {
				t.Error(err)
			}
		}
		if count != len(owners)-1 {
			t.Errorf("%d of %d were refused", count, len(owners))
		}
	})
}

// TestCheck: Check changes nothing, and accepts no schema but this version's.
func TestCheck(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		for _, last := range []string{"00000", "00004", "99999"} {
			all := schema.Billing()
			if err := db.Migrate(t.Context(), sqldb.Billing, upTo(t, last, all)); err != nil && last > "00000" {
				t.Fatal(err)
			}
			older := db.Check(t.Context(), sqldb.Billing, all)
			if complete := last == "99999"; complete != (older == nil) || !complete && !errors.Is(older, sqldb.ErrURL) {
				t.Errorf("a schema up to %s: %v", last, older)
			}
		}
		newer := db.Check(t.Context(), sqldb.Billing, upTo(t, "00004", schema.Billing()))
		if !errors.Is(newer, sqldb.ErrURL) || !strings.Contains(newer.Error(), "newer") {
			t.Errorf("a newer schema: %v", newer)
		}
		if err := db.Check(t.Context(), sqldb.Billing, schema.Billing()); err != nil {
			t.Error(err)
		}
	})
}
