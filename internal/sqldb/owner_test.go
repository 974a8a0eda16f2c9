package sqldb_test

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/schema"
)

func schemas() map[sqldb.Owner]fs.FS {
	return map[sqldb.Owner]fs.FS{sqldb.Registry: schema.Registry(), sqldb.Auth: schema.Auth(), sqldb.Billing: schema.Subscriber()}
}

// before is a schema as it was when this was its last migration.
func before(t *testing.T, all fs.FS, last string) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	for _, folder := range []string{"sqlite", "postgres"} {
		entries, err := fs.ReadDir(all, folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if entry.Name()[:len(last)] > last {
				continue
			}
			name := path.Join(folder, entry.Name())
			text, err := fs.ReadFile(all, name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = &fstest.MapFile{Data: text}
		}
	}
	return files
}

// TestOwner: nobody migrates another's database, or looks into it, whichever version it is of; it stays as it is, and its owner goes
// on with it.
func TestOwner(t *testing.T) {
	t.Parallel()
	for _, engine := range testenv.Engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			databases := testenv.Databases(t, engine)
			for owner, all := range schemas() {
				for _, version := range []string{"00001", "00008", "00012", "00014", "99999"} {
					db := open(t, databases())
					if err := db.Migrate(t.Context(), owner, before(t, all, version)); err != nil {
						t.Fatal(err)
					}
					checkRefused(t, db, owner, version)
					if err := db.Migrate(t.Context(), owner, all); err != nil {
						t.Errorf("%s own database of %s: %v", owner, version, err)
					}
				}
			}
		})
	}
}

func checkRefused(t *testing.T, db *sqldb.DB, owner sqldb.Owner, version string) {
	t.Helper()
	versions := number(t, db, "SELECT COUNT(*) FROM goose_db_version")
	for other, theirs := range schemas() {
		same := version <= "00012" && owner != sqldb.Registry && other != sqldb.Registry // Auth's and Billing's did not differ yet
		if other == owner || same {
			continue
		}
		for _, err := range []error{db.Check(t.Context(), other, theirs), db.Migrate(t.Context(), other, theirs)} {
			if !errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), ", not "+string(other)) {
				t.Errorf("%s database of %s as %s: %v", owner, version, other, err)
			}
		}
	}
	if now := number(t, db, "SELECT COUNT(*) FROM goose_db_version"); now != versions {
		t.Errorf("%s database of %s has %d versions in place of %d", owner, version, now, versions)
	}
}

// TestOwnersAtOnce: two processes that get one new database by mistake, at once, don't both take it.
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

// TestCheck: who only looks migrates nothing, and takes no schema but this version's.
func TestCheck(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		for _, version := range []string{"00000", "00009", "99999"} {
			all := schema.Subscriber()
			if err := db.Migrate(t.Context(), sqldb.Billing, before(t, all, version)); err != nil && version > "00000" {
				t.Fatal(err)
			}
			older := db.Check(t.Context(), sqldb.Billing, all)
			if complete := version == "99999"; complete != (older == nil) || !complete && !errors.Is(older, sqldb.ErrURL) {
				t.Errorf("a schema of %s: %v", version, older)
			}
		}
		newer := db.Check(t.Context(), sqldb.Billing, before(t, schema.Subscriber(), "00028"))
		if !errors.Is(newer, sqldb.ErrURL) || !strings.Contains(newer.Error(), "newer") {
			t.Errorf("a newer schema: %v", newer)
		}
		if err := db.Check(t.Context(), sqldb.Billing, schema.Subscriber()); err != nil {
			t.Error(err)
		}
	})
}

// TestMarksOfOwners: what tells the owners apart is in their migrations as internal/sqldb takes it to be.
func TestMarksOfOwners(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"sqlite", "postgres"} {
		auths, err := fs.Glob(schema.Auth(), engine+"/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		billings, err := fs.Glob(schema.Subscriber(), engine+"/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		first := slices.IndexFunc(auths, func(name string) bool { return !slices.Contains(billings, name) })
		if !strings.HasPrefix(auths[first], engine+"/00013_") || !slices.IsSorted(auths) {
			t.Errorf("the first migration that only Auth has is %s", auths[first])
		}
	}
}
