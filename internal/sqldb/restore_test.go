package sqldb_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/schema"
)

// registryFile makes a registry's database with one app, and returns its path.
func registryFile(t *testing.T, app string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registry.db")
	db := open(t, "sqlite:"+path)
	if err := db.Migrate(t.Context(), sqldb.Registry, schema.Registry()); err != nil {
		t.Fatal(err)
	}
	if err := inTx(t, db, "INSERT INTO apps (app_id, master_public_key, added_at) VALUES ('"+app+"', x'00', 1)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func restore(t *testing.T, path, from string) (sqldb.Restored, error) {
	t.Helper()
	return sqldb.Restore(t.Context(), "sqlite:"+path, from, sqldb.Registry, schema.Registry())
}

// appIn returns the one app that a database knows.
func appIn(t *testing.T, path string) (app string) {
	t.Helper()
	db := open(t, "sqlite:"+path)
	if err := db.QueryRow(t.Context(), "SELECT app_id FROM apps").Scan(&app); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return app
}

// namesIn are the names in a folder.
func namesIn(t *testing.T, folder string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// TestRestore: a copy takes the place of a database that crashed, with the old one's mode, and the
// old one is kept with its log. The name of the database may be a link.
func TestRestore(t *testing.T) {
	t.Parallel()
	backup, path := registryFile(t, "backup"), registryFile(t, "old")
	db := open(t, "sqlite:"+path)
	if err := inTx(t, db, "UPDATE apps SET app_id = 'crashed'"); err != nil {
		t.Fatal(err)
	}
	crash := crashed(t, path)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, path, crash.file)
	write(t, path+"-wal", crash.log)
	write(t, path+"-shm", make([]byte, 32768))
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	before := read(t, backup)
	done, err := restore(t, link, backup)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if names := namesIn(t, filepath.Dir(path)); len(names) != 3 {
		t.Errorf("there are %v, want the database, and the old one with its log", names)
	}
	if app := appIn(t, link); app != "backup" {
		t.Errorf("the restored database knows %s", app)
	}
	if app := appIn(t, done.Kept); app != "crashed" {
		t.Errorf("the old database knows %s", app)
	}
	if !bytes.Equal(before, read(t, backup)) || len(namesIn(t, filepath.Dir(backup))) != 1 {
		t.Error("the copy was changed")
	}
}

// TestRestoreToNothing: where there is no database, or what is there is none, a copy can be
// restored too; and one with a log.
func TestRestoreToNothing(t *testing.T) {
	t.Parallel()
	path := registryFile(t, "old")
	db := open(t, "sqlite:"+path)
	if err := inTx(t, db, "UPDATE apps SET app_id = 'in the log'"); err != nil {
		t.Fatal(err)
	}
	crash := crashed(t, path)
	from := filepath.Join(t.TempDir(), "snapshot")
	write(t, from, crash.file)
	write(t, from+"-wal", crash.log)
	for name, content := range map[string][]byte{"missing": nil, "empty": {}, "no database": []byte(strings.Repeat("no database", 100))} {
		to := filepath.Join(t.TempDir(), "new", "registry.db")
		if content != nil {
			if err := os.Mkdir(filepath.Dir(to), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, to, content)
		}
		if _, err := restore(t, to, from); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		if app := appIn(t, to); app != "in the log" {
			t.Errorf("%s: it knows %s", name, app)
		}
	}
}

// TestRestoreByLink: the log of a copy that is named by a link lies next to the copy itself. A link
// to a file that is not there is kept.
func TestRestoreByLink(t *testing.T) {
	t.Parallel()
	path := registryFile(t, "old")
	db := open(t, "sqlite:"+path)
	if err := inTx(t, db, "UPDATE apps SET app_id = 'in the log'"); err != nil {
		t.Fatal(err)
	}
	crash := crashed(t, path)
	from, folder := filepath.Join(t.TempDir(), "snapshot"), t.TempDir()
	write(t, from, crash.file)
	write(t, from+"-wal", crash.log)
	latest, to := filepath.Join(folder, "latest"), filepath.Join(folder, "registry.db")
	if err := os.Symlink(from, latest); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(t, to, latest); err != nil {
		t.Fatal(err)
	}
	if app := appIn(t, to); app != "in the log" {
		t.Errorf("it knows %s", app)
	}
	nowhere := filepath.Join(folder, "nowhere")
	if err := os.Symlink(filepath.Join(folder, "lost"), nowhere); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(t, nowhere, from); !errors.Is(err, sqldb.ErrURL) {
		t.Error(err)
	}
	if info, err := os.Lstat(nowhere); err != nil || info.Mode().IsRegular() {
		t.Errorf("the link is %v, %v", info, err)
	}
}

// TestRestoreRefuses: a copy that is no database of this process, or not sound, changes nothing;
// nor does one while the database, or the copy, is in use.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	good := registryFile(t, "good")
	folder := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(folder, name)
		write(t, path, content)
		return path
	}
	content := read(t, good)
	auths := filepath.Join(folder, "auth.db")
	db := open(t, "sqlite:"+auths)
	if err := db.Migrate(t.Context(), sqldb.Auth, schema.Auth()); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	newer := registryFile(t, "newer")
	db = open(t, "sqlite:"+newer)
	exec(t, db, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	early := registryFile(t, "early")
	db = open(t, "sqlite:"+early)
	exec(t, db, "DROP TABLE database_owner")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	used := registryFile(t, "used")
	serving := registryFile(t, "serving") // two, since to look at one ends the locks that this process has on it
	open(t, "sqlite:"+used)
	open(t, "sqlite:"+serving)

	path := registryFile(t, "old")
	before := read(t, path)
	for name, tt := range map[string]struct {
		from string
		want string
	}{
		"missing":     {filepath.Join(folder, "nothing"), "no such file"},
		"a folder":    {folder, "not a file"},
		"itself":      {path, "the database itself"},
		"text":        {file("text", []byte(strings.Repeat("no database ", 500))), "not a database"},
		"empty":       {file("empty", nil), "not the registry's"},
		"malformed":   {file("malformed", append(content[:8192:8192], make([]byte, len(content)-8192)...)), "malformed"},
		"half a file": {file("half", content[:len(content)/2]), "malformed"},
		"Auth's":      {auths, "it is Auth's, not the registry's"},
		"early":       {early, "it is from before the first release"},
		"newer":       {newer, "newer than this program"},
		"in use":      {used, "has " + used + " open"},
	} {
		_, err := restore(t, path, tt.from)
		if !errors.Is(err, sqldb.ErrCopy) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	if _, err := sqldb.Restore(t.Context(), "postgres://h/db", good, sqldb.Registry, schema.Registry()); !errors.Is(err, sqldb.ErrURL) {
		t.Errorf("a server: %v", err)
	}
	if runtime.GOOS == "linux" { // elsewhere a process is not in its own way
		if _, err := restore(t, serving, good); !errors.Is(err, sqldb.ErrInUse) {
			t.Errorf("in use: %v", err)
		}
	}
	if names := namesIn(t, filepath.Dir(path)); !bytes.Equal(before, read(t, path)) || len(names) != 1 {
		t.Errorf("something was changed: %v", names)
	}
}
