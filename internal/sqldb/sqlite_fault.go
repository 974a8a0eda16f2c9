package sqldb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// ErrFault says that this process must not use its database any more, and that no later attempt of
// it will succeed: the file is malformed, or it was removed or replaced. It is not the fault of
// what was asked, so a message whose handling ends with it is neither acknowledged nor set aside.
// [Transient] is true for it.
var ErrFault = errors.New("the database can't be used any more")

// The two kinds of [ErrFault]. A restart is the remedy for ErrReplaced, because the next process
// opens what lies there now. It is none for ErrCorrupt: a person must restore a copy first.
var (
	ErrReplaced = fmt.Errorf("%w: its file was removed or replaced while this process has it open, and what is written to it is lost: "+
		"restart the process, which then opens the file that is there", ErrFault)
	ErrCorrupt = fmt.Errorf("%w: its file is malformed: stop the process, and put a copy in place with the program's command restore --from FILE", ErrFault)
)

// Fault returns nil, or why this database must not be used any more: an [ErrFault], which stays.
// InTx, every statement and Ping return it, too. Only SQLite has faults: a server is asked again.
func (db *DB) Fault() error {
	if db.fault == nil {
		return nil
	}
	return db.fault.get()
}

// fault is what goes wrong with a SQLite file for good, and for a while.
type fault struct {
	log  *slog.Logger
	file string // by the name of the URL

	first  atomic.Pointer[error]         // the lasting fault
	opened atomic.Pointer[[]watchedFile] // nil: not open yet
	failed atomic.Pointer[error]         // the last write failed by it; nil: it did not fail

	long   time.Duration // from which on a wait for the lock is warned of
	mu     sync.Mutex
	warned time.Time // of that
}

// busyLong is less than the busy_timeout of the connections.
const busyLong = 5 * time.Second

func newFault(file string, log *slog.Logger) *fault {
	return &fault{log: log, file: file, long: busyLong}
}

// watchedFile is a file that SQLite has open.
type watchedFile struct {
	path string
	info fs.FileInfo
}

func (f *fault) get() error {
	if err := f.first.Load(); err != nil {
		return *err
	}
	return nil
}

// set keeps the first fault, logs it once, and returns what is kept.
func (f *fault) set(ctx context.Context, err error) error {
	// Until then, the error is an answer to who opens it.
	if f.first.CompareAndSwap(nil, &err) && f.opened.Load() != nil {
		f.log.ErrorContext(ctx, "the database is not used any more: nothing is read from it or committed", "file", f.file, "error", err)
	}
	return f.get()
}

// suffixes are what SQLite appends to the name of a database in WAL mode: itself, its log, and the
// index of that.
var suffixes = [...]string{"", "-wal", "-shm"} //nolint:gochecknoglobals // a constant

// realPath is the name by which SQLite finds what belongs to a database: that of the file itself,
// if the name is a link.
func realPath(file string) string {
	if target, err := filepath.EvalSymlinks(file); err == nil {
		return target
	}
	return file
}

// watch remembers which files are open now. They must stay the same from then on.
func (f *fault) watch() {
	var open []watchedFile
	for _, suffix := range suffixes {
		path := realPath(f.file) + suffix
		if suffix == "" {
			path = f.file // a link that points elsewhere leads to another database
		}
		if info, err := os.Stat(path); err == nil {
			open = append(open, watchedFile{path, info})
		}
	}
	f.opened.Store(&open)
}

// look returns the lasting fault. It is one that a file is gone, or another one has its name.
func (f *fault) look(ctx context.Context) error {
	if err := f.get(); err != nil {
		return err
	}
	open := f.opened.Load()
	if open == nil {
		return nil
	}
	for _, one := range *open {
		info, err := os.Stat(one.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return f.set(ctx, fmt.Errorf("%w: %s is gone", ErrReplaced, one.path))
		case err == nil && !os.SameFile(one.info, info):
			return f.set(ctx, fmt.Errorf("%w: %s is another file now", ErrReplaced, one.path))
		}
	}
	return nil
}

// written notes that something could be written.
func (f *fault) written() { f.failed.Store(nil) }

// unwritten notes that something could not be written.
func (f *fault) unwritten(err error) {
	if unwritable(err) {
		f.failed.Store(&err)
	}
}

// waited warns where the lock that writers take was waited for very long.
func (f *fault) waited(ctx context.Context, waited time.Duration) {
	if waited < f.long {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.warned) < warnEvery {
		return
	}
	f.warned = time.Now()
	f.log.WarnContext(ctx, "the database is locked by another process, and nothing can be committed: look for one with an open write "+
		"transaction, as a shell (sqlite3), a backup or a copy of this process has it; `fuser FILE` lists those that have it open",
		"file", f.file, "waited", waited.Round(time.Millisecond))
}

// judged returns an error, or the lasting fault that it is a sign of, where database/sql is used
// directly.
func (db *DB) judged(ctx context.Context, err error) error {
	if db.fault == nil {
		return err
	}
	return db.fault.judge(ctx, err)
}

// judge returns an error, or the lasting fault that it is a sign of.
func (f *fault) judge(ctx context.Context, err error) error {
	code, ok := sqliteCode(err)
	if !ok {
		return err
	}
	switch code {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return f.set(ctx, fmt.Errorf("%w: %w", ErrCorrupt, err))
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL:
		if lasting := f.look(ctx); lasting != nil {
			return lasting
		}
	}
	return err
}

// unwritable says whether the error is that the file, or its disk, can't be written to now.
func unwritable(err error) bool {
	code, ok := sqliteCode(err)
	return ok && (code == sqlite3.SQLITE_FULL || code == sqlite3.SQLITE_IOERR || code == sqlite3.SQLITE_READONLY)
}
