package sqldb

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// TestWriteOut: it is done by a descriptor that SQLite has, and none is opened for it, since its end would be the end of SQLite's locks.
func TestWriteOut(t *testing.T) { //nolint:paralleltest // it counts descriptors
	path := filepath.Join(t.TempDir(), "written.db")
	if fd, _ := descriptor(path); fd != 0 {
		t.Errorf("descriptor %d of a file that is not there", fd)
	}
	db, err := Open(t.Context(), "sqlite:"+path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.Writer().ExecContext(t.Context(), "CREATE TABLE t (n INTEGER)"); err != nil {
		t.Fatal(err)
	}
	fd, _ := descriptor(path)
	if name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil || filepath.Base(name) != "written.db" {
		t.Errorf("descriptor %d of %q (%v)", fd, name, err)
	}
	before := descriptors(t, "written.db")
	writeOut(t.Context(), path)
	if now := descriptors(t, "written.db"); now != before {
		t.Errorf("%d descriptors, before %d", now, before)
	}
}

// descriptors counts those that this process has of files with a name.
func descriptors(t *testing.T, name string) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		if to, err := os.Readlink("/proc/self/fd/" + one.Name()); err == nil && filepath.Base(to) == name {
			n++
		}
	}
	return n
}
