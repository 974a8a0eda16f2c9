package sqldb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
)

// ErrFault says that this process must not use its database any more, and that no later attempt of it will succeed: the file is
// malformed, or it was removed or replaced. It is not the fault of what was asked, so a message whose handling ends with it is
// neither acknowledged nor set aside. [Transient] is true for it.
var ErrFault = errors.New("the database can't be used any more")

// The two kinds of [ErrFault]. A restart is the remedy for ErrReplaced, because the next process opens what lies there now. It is none
// for ErrCorrupt: a person has to restore a copy first.
var (
	ErrReplaced = fmt.Errorf("%w: the file was removed or replaced while this process has it open; what is written to it is lost: "+
		"restart the process, which then opens the file that is there", ErrFault)
	ErrCorrupt = fmt.Errorf("%w: the file is malformed: stop the process and restore a copy with its command `restore --from FILE`", ErrFault)
)

// Fault returns nil, or why this database must not be used any more: an [ErrFault], which stays. InTx, every statement and Ping
// return it, too. Only SQLite has faults: a server is asked again.
func (db *DB) Fault() error { return db.fault.get() }

// fault is the first lasting fault of a database.
type fault struct {
	log   *slog.Logger
	file  string
	first atomic.Pointer[error]
}

func (f *fault) get() error {
	if f == nil {
		return nil
	}
	if err := f.first.Load(); err != nil {
		return *err
	}
	return nil
}

// set keeps the first fault, logs it once, and returns what is kept.
func (f *fault) set(ctx context.Context, err error) error {
	if f.first.CompareAndSwap(nil, &err) {
		f.log.ErrorContext(ctx, "the database is not used any more: no request is decided and no event applied", "file", f.file, "error", err)
	}
	return f.get()
}
