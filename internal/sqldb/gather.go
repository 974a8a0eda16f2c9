package sqldb

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"modernc.org/libc"
	"modernc.org/libc/sys/types"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite writes its log a page at a time, by two system calls: 24 bytes that say which page it is, and the page. A batch of rotations
// changes thousands of pages. So the connection that writes has a VFS of its own, the usual one but for this: what it writes to the log,
// one piece behind the other, is gathered and written as one.
//
// That changes when the log is written, and never in which order. What is gathered is written before anything else is done to the
// log: before it is synced, read, truncated or measured, and before a piece that belongs elsewhere. Others see what was committed:
// with synchronous=FULL, which the connections that use this have to have, SQLite syncs the log before it tells anybody that there is more
// of it. An error is that of the call that found it, of that sync at the latest; and since it may be about what an earlier statement
// of the transaction wrote, nothing more is written or synced from then on until the transaction ends: it can't be committed.
//
// What a transaction gathered and did not commit must not be written later, over what somebody else has committed meanwhile: it is
// dropped as the transaction ends, when SQLite gives back the right to write to the log. That is a lock of the database's file, so
// the VFS looks on there.

const (
	gatheringVFS = "omi-gathering"
	// gatherMost is how many bytes are gathered. SQLite hands the system less than 128 KiB at once.
	gatherMost = 124 << 10
	// lockToWrite is the place among SQLite's locks of who may write to the log (WAL_WRITE_LOCK).
	lockToWrite = 0
)

// gatheringFile is what the VFS knows of an open file: a log, or the database that it belongs to. It lies in SQLite's memory and not
// in Go's, since SQLite keeps a pointer to it.
type gatheringFile struct {
	methods sqlite3.Tsqlite3_io_methods // as SQLite calls them; the first field, so that SQLite's pointer to them is one to all of this
	inner   uintptr                     // the usual VFS's methods
	other   uintptr                     // of a database: its log; of a log: its database; 0: there is none now
	data    uintptr                     // what is gathered, gatherMost bytes at most
	length  int32
	failed  int32 // SQLite's error, where something gathered could not be written
	from    int64 // where in the file it belongs
}

// What SQLite's methods look like.
type (
	openFunc  = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, outFlags uintptr) int32
	fileFunc  = func(tls *libc.TLS, file uintptr) int32
	pieceFunc = func(tls *libc.TLS, file, data uintptr, length int32, from int64) int32
	sizeFunc  = func(tls *libc.TLS, file uintptr, size int64) int32
	flagsFunc = func(tls *libc.TLS, file uintptr, flags int32) int32
	askFunc   = func(tls *libc.TLS, file, answer uintptr) int32
	lockFunc  = func(tls *libc.TLS, file uintptr, first, count, flags int32) int32
)

// registerGathering makes the VFS known to SQLite, once a process: there is no other place for it than SQLite's own list.
//
//nolint:gochecknoglobals // see above
var registerGathering = sync.OnceValue(func() error {
	tls := libc.NewTLS()
	defer tls.Close()
	name, err := libc.CString(gatheringVFS)
	if err != nil {
		return fmt.Errorf("name a VFS: %w", err)
	}
	own := libc.Xcalloc(tls, 1, types.Size_t(unsafe.Sizeof(sqlite3.Tsqlite3_vfs{})))
	usual := sqlite3.Xsqlite3_vfs_find(tls, 0)
	if own == 0 || usual == 0 {
		return errors.New("SQLite has no memory for a VFS, or no usual one")
	}
	vfs := at[sqlite3.Tsqlite3_vfs](own)
	*vfs = *at[sqlite3.Tsqlite3_vfs](usual)
	vfs.FpNext, vfs.FzName, vfs.FxOpen = 0, name, pointer(openGathering)
	if rc := sqlite3.Xsqlite3_vfs_register(tls, own, 0); rc != sqlite3.SQLITE_OK {
		return fmt.Errorf("register a VFS: SQLite's error %d", rc)
	}
	return nil
})

func openGathering(tls *libc.TLS, _, name, file uintptr, flags int32, outFlags uintptr) int32 {
	usual := sqlite3.Xsqlite3_vfs_find(tls, 0)
	rc := function[openFunc](at[sqlite3.Tsqlite3_vfs](usual).FxOpen)(tls, usual, name, file, flags, outFlags)
	if rc != sqlite3.SQLITE_OK || flags&(sqlite3.SQLITE_OPEN_MAIN_DB|sqlite3.SQLITE_OPEN_WAL) == 0 {
		return rc
	}
	own := libc.Xcalloc(tls, 1, types.Size_t(unsafe.Sizeof(gatheringFile{})))
	if own == 0 {
		return sqlite3.SQLITE_NOMEM // and SQLite closes the file
	}
	opened := at[sqlite3.Tsqlite3_file](file)
	g := at[gatheringFile](own)
	g.inner = opened.FpMethods
	g.methods = *at[sqlite3.Tsqlite3_io_methods](g.inner)
	g.methods.FxClose = pointer(closeGathering)
	if flags&sqlite3.SQLITE_OPEN_MAIN_DB != 0 {
		g.methods.FxShmLock = pointer(lockGathering)
		opened.FpMethods = own
		return rc
	}
	if g.data = libc.Xmalloc(tls, gatherMost); g.data == 0 {
		libc.Xfree(tls, own)
		return sqlite3.SQLITE_NOMEM
	}
	g.other = sqlite3.Xsqlite3_database_file_object(tls, name)
	gathering(g.other).other = file
	g.methods.FxWrite = pointer(writeGathering)
	g.methods.FxRead = pointer(readGathering)
	g.methods.FxSync = pointer(syncGathering)
	g.methods.FxTruncate = pointer(truncateGathering)
	g.methods.FxFileSize = pointer(sizeGathering)
	opened.FpMethods = own
	return rc
}

// gathering returns what is known of a file.
func gathering(file uintptr) *gatheringFile {
	return at[gatheringFile](at[sqlite3.Tsqlite3_file](file).FpMethods)
}

func (g *gatheringFile) usual() *sqlite3.Tsqlite3_io_methods {
	return at[sqlite3.Tsqlite3_io_methods](g.inner)
}

// write writes what is gathered.
func (g *gatheringFile) write(tls *libc.TLS, file uintptr) int32 {
	if g.length == 0 {
		return sqlite3.SQLITE_OK
	}
	length := g.length
	g.length = 0
	g.failed = function[pieceFunc](g.usual().FxWrite)(tls, file, g.data, length, g.from)
	return g.failed
}

func writeGathering(tls *libc.TLS, file, data uintptr, length int32, from int64) int32 {
	g := gathering(file)
	if g.failed != sqlite3.SQLITE_OK {
		return g.failed
	}
	if g.length > gatherMost-length || from != g.from+int64(g.length) {
		if rc := g.write(tls, file); rc != sqlite3.SQLITE_OK {
			return rc
		}
		g.from = from
	}
	if length > gatherMost {
		return function[pieceFunc](g.usual().FxWrite)(tls, file, data, length, from)
	}
	copy(bytesAt(g.data, gatherMost)[g.length:], bytesAt(data, length))
	g.length += length
	return sqlite3.SQLITE_OK
}

func readGathering(tls *libc.TLS, file, data uintptr, length int32, from int64) int32 {
	g := gathering(file)
	if rc := g.write(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return function[pieceFunc](g.usual().FxRead)(tls, file, data, length, from)
}

func syncGathering(tls *libc.TLS, file uintptr, flags int32) int32 {
	g := gathering(file)
	if rc := g.write(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	if g.failed != sqlite3.SQLITE_OK {
		return g.failed
	}
	return function[flagsFunc](g.usual().FxSync)(tls, file, flags)
}

func truncateGathering(tls *libc.TLS, file uintptr, size int64) int32 {
	g := gathering(file)
	if rc := g.write(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return function[sizeFunc](g.usual().FxTruncate)(tls, file, size)
}

func sizeGathering(tls *libc.TLS, file, size uintptr) int32 {
	g := gathering(file)
	if rc := g.write(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return function[askFunc](g.usual().FxFileSize)(tls, file, size)
}

func lockGathering(tls *libc.TLS, file uintptr, first, count, flags int32) int32 {
	g := gathering(file)
	if first == lockToWrite && flags&sqlite3.SQLITE_SHM_UNLOCK != 0 && g.other != 0 {
		log := gathering(g.other)
		log.length, log.failed = 0, sqlite3.SQLITE_OK
	}
	return function[lockFunc](g.usual().FxShmLock)(tls, file, first, count, flags)
}

func closeGathering(tls *libc.TLS, file uintptr) int32 {
	own := at[sqlite3.Tsqlite3_file](file).FpMethods
	g := at[gatheringFile](own)
	rc := function[fileFunc](g.usual().FxClose)(tls, file)
	if g.other != 0 {
		gathering(g.other).other = 0
	}
	libc.Xfree(tls, g.data)
	libc.Xfree(tls, own)
	return rc
}

// What follows turns SQLite's pointers into Go's and back. SQLite's memory is none of Go's: nothing there is moved or freed by Go.

// at returns what lies at an address of SQLite's memory.
func at[T any](address uintptr) *T {
	return *(**T)(unsafe.Pointer(&address)) //nolint:gosec // an address that SQLite gave, or malloc
}

// bytesAt returns the bytes at an address of SQLite's memory.
func bytesAt(address uintptr, length int32) []byte {
	return unsafe.Slice(at[byte](address), length) //nolint:gosec // SQLite says how many there are
}

// pointer returns a function as SQLite has it. It must be one that is declared: a closure would be freed.
func pointer[F any](f F) uintptr {
	return *(*uintptr)(unsafe.Pointer(&f)) //nolint:gosec // how the SQLite driver, which is Go, represents functions
}

// function returns one of SQLite's functions as Go has it.
func function[F any](pointer uintptr) F {
	return *(*F)(unsafe.Pointer(&pointer)) //nolint:gosec // as above
}
