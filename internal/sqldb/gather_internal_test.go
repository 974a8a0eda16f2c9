package sqldb

import (
	"testing"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

func fullWrite(*libc.TLS, uintptr, uintptr, int32, int64) int32 { return sqlite3.SQLITE_FULL }

func noRead(*libc.TLS, uintptr, uintptr, int32, int64) int32 { return sqlite3.SQLITE_OK }

func noSync(*libc.TLS, uintptr, int32) int32 { return sqlite3.SQLITE_OK }

func noLock(*libc.TLS, uintptr, int32, int32, int32) int32 { return sqlite3.SQLITE_OK }

// TestGatheredAndLost: what was gathered can't be written to a full disk when something is read. SQLite may go on with the transaction after
// that, but can't commit it; the next one can.
func TestGatheredAndLost(t *testing.T) {
	t.Parallel()
	tls := libc.NewTLS()
	defer tls.Close()
	zeroed := func(size uintptr) uintptr {
		p := libc.Xcalloc(tls, 1, libc.Tsize_t(size))
		t.Cleanup(func() { libc.Xfree(tls, p) })
		return p
	}
	inner := zeroed(unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{}))
	methods := at[sqlite3.Tsqlite3_io_methods](inner)
	methods.FxWrite, methods.FxRead, methods.FxSync, methods.FxShmLock = pointer(fullWrite), pointer(noRead), pointer(noSync), pointer(noLock)
	file := func() (file uintptr, g *gatheringFile) {
		file = zeroed(unsafe.Sizeof(sqlite3.Tsqlite3_file{}))
		at[sqlite3.Tsqlite3_file](file).FpMethods = zeroed(unsafe.Sizeof(gatheringFile{}))
		g = gathering(file)
		g.inner = inner
		return file, g
	}
	database, d := file()
	log, l := file()
	d.other, l.other, l.data = log, database, zeroed(gatherMost)
	piece := zeroed(64)

	for _, step := range []struct {
		name string
		got  int32
		want int32
	}{
		{"write", writeGathering(tls, log, piece, 64, 0), sqlite3.SQLITE_OK},
		{"read", readGathering(tls, log, piece, 64, 0), sqlite3.SQLITE_FULL},
		{"write after that", writeGathering(tls, log, piece, 64, 64), sqlite3.SQLITE_FULL},
		{"sync", syncGathering(tls, log, sqlite3.SQLITE_SYNC_NORMAL), sqlite3.SQLITE_FULL},
		{"end", lockGathering(tls, database, lockToWrite, 1, sqlite3.SQLITE_SHM_UNLOCK|sqlite3.SQLITE_SHM_EXCLUSIVE), sqlite3.SQLITE_OK},
		{"sync of the next", syncGathering(tls, log, sqlite3.SQLITE_SYNC_NORMAL), sqlite3.SQLITE_OK},
	} {
		if step.got != step.want {
			t.Errorf("%s: SQLite's code %d, want %d", step.name, step.got, step.want)
		}
	}
}
