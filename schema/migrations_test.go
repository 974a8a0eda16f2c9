package schema_test

import (
	"io/fs"
	"log/slog"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/schema"
)

// databases are the three databases' migrations.
func databases() map[sqldb.Owner]fs.FS {
	return map[sqldb.Owner]fs.FS{sqldb.Registry: schema.Registry(), sqldb.Auth: schema.Auth(), sqldb.Billing: schema.Billing()}
}

// all returns the migrations of a database as a copy that can be added to.
func all(t *testing.T, fsys fs.FS) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	for _, dialect := range []string{"sqlite", "postgres"} {
		names, err := fs.Glob(fsys, dialect+"/*")
		if err != nil || len(names) == 0 {
			t.Fatalf("%d files: %v", len(names), err)
		}
		for _, name := range names {
			text, err := fs.ReadFile(fsys, name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = &fstest.MapFile{Data: text}
		}
	}
	return files
}

// TestMigrationFiles: each file is named and written as the README says.
func TestMigrationFiles(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^\d{5}_[a-z_]+\.sql$`)
	for owner, fsys := range databases() {
		seen := map[string]string{}
		for name, file := range all(t, fsys) {
			number := path.Dir(name) + "/" + path.Base(name)[:5]
			if !form.MatchString(path.Base(name)) {
				t.Errorf("the name of %s %s is not NUMBER_WORDS.sql", owner, name)
			}
			if twin := seen[number]; twin != "" && onlyOn(twin) == onlyOn(name) {
				t.Errorf("%s and %s are both %s", twin, name, number)
			}
			seen[number] = name
			checkStatement(t, name, string(file.Data))
		}
	}
}

// onlyOn returns which server a file is for, if it is not for both.
func onlyOn(name string) string {
	_, server, _ := strings.Cut(name, "_on_")
	return server
}

func checkStatement(t *testing.T, name, text string) {
	t.Helper()
	rest, ok := strings.CutPrefix(text, "-- +goose NO TRANSACTION\n-- +goose Up\n-- ")
	if !ok {
		t.Errorf("%s does not begin with goose's two lines and a comment", name)
	}
	var statement []string
	for line := range strings.Lines(rest) {
		if code, _, _ := strings.Cut(line, "--"); strings.TrimSpace(code) != "" {
			statement = append(statement, strings.TrimSpace(code))
		}
	}
	ends := slices.IndexFunc(statement, func(line string) bool { return strings.HasSuffix(line, ";") })
	if ends != len(statement)-1 && !strings.Contains(text, "-- +goose StatementBegin") {
		t.Errorf("%s has not one statement", name)
	}
}

// TestMigrationsRepeat: a process can be killed between a statement and the note that it was run.
// The next process runs the statement again.
func TestMigrationsRepeat(t *testing.T) {
	t.Parallel()
	for owner, fsys := range databases() {
		t.Run(string(owner), func(t *testing.T) {
			t.Parallel()
			testenv.EachEngine(t, func(t *testing.T, url string) {
				db := open(t, url)
				for range 2 {
					if err := db.Migrate(t.Context(), owner, fsys); err != nil {
						t.Fatal(err)
					}
					execute(t, db, "DELETE FROM goose_db_version WHERE version_id > 0")
				}
			})
		})
	}
}

// TestNextMigration: a database with the baseline gets what is added to the folder of both
// subscribers and, with a lower number, to Billing's own, and keeps what it has.
func TestNextMigration(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		files := all(t, schema.Billing())
		statements := []struct{ name, text string }{
			{"", ""},
			{"00901_keys_source", "ALTER TABLE keys ADD COLUMN source BIGINT NOT NULL DEFAULT 0"},
			{"00900_sources", "CREATE TABLE IF NOT EXISTS sources (id BIGINT NOT NULL PRIMARY KEY)"},
		}
		for _, statement := range statements {
			for _, dialect := range []string{"sqlite/", "postgres/"} {
				if statement.name != "" {
					text := "-- +goose NO TRANSACTION\n-- +goose Up\n-- As the README says.\n" + statement.text + ";\n"
					files[dialect+statement.name+".sql"] = &fstest.MapFile{Data: []byte(text)}
				}
			}
			if err := db.Migrate(t.Context(), sqldb.Billing, files); err != nil {
				t.Fatal(err)
			}
			if statement.name == "" {
				execute(t, db, "INSERT INTO keys (service, public_key, position, from_time, end_time) VALUES (1, '1', 2, 3, 4)")
			}
		}
		var n int
		const query = `SELECT count(*) FROM keys LEFT JOIN sources ON id = source WHERE service = 1 AND source = 0`
		if err := db.QueryRow(t.Context(), query).Scan(&n); err != nil || n != 1 {
			t.Errorf("%d rows, want the one from before: %v", n, err)
		}
	})
}

func open(t *testing.T, url string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func execute(t *testing.T, db *sqldb.DB, statement string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }
