package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// How a SQLite connection is set up, beyond the driver's defaults.
//
//   - WAL: readers and the writer don't wait for each other. FULL: a commit is on the disk when
//     it returns, because the message that it answers is acknowledged next.
//   - busy_timeout: another process may write to the same file; wait for it before giving up
//     with SQLITE_BUSY.
//   - wal_autocheckpoint: a commit runs a checkpoint from 20,000 pages on (80 MB), not 1,000: a
//     batch of rotations touches pages all over the file, and each checkpoint writes and syncs
//     them all again. As a rule the checkpointer is earlier.
//   - journal_size_limit: if the log could not be checkpointed for long, the space is given
//     back afterwards.
//   - cache_size: 64 MB for a connection; the driver lends it what others leave. temp_store:
//     what a statement stores temporarily stays in memory, and is not written to a file.
//   - _dqs=0: a misspelt column in double quotes is an error, not a string. _error_rc=1: no
//     stale text in errors.
func fileParams() url.Values {
	return url.Values{
		"_pragma": {
			"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
			"wal_autocheckpoint(20000)", "journal_size_limit(" + strconv.Itoa(logKept) + ")", "cache_size(-65536)", "temp_store(MEMORY)",
		},
		"_dqs":      {"0"},
		"_error_rc": {"1"},
	}
}

func openFile(ctx context.Context, rest string, log *slog.Logger) (db *DB, err error) {
	path, err := sqlitePath(rest)
	if err != nil {
		return nil, err
	}
	err = Await(ctx, log, func() (err error) {
		db, err = openFileNow(ctx, path, log)
		return err
	})
	return db, err
}

func openFileNow(ctx context.Context, path string, log *slog.Logger) (*DB, error) {
	if err := createFile(path); err != nil {
		return nil, err
	}
	if err := checkLog(ctx, path, log); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	// Distributions build SQLite the same way: a commit doesn't wait until the file's modification
	// time is on the disk.
	if _, err := sqlite.Fdatasync(true); err != nil && !errors.Is(err, sqlite.ErrFdatasyncUnavailable) {
		return nil, fmt.Errorf("have SQLite use fdatasync: %w", err)
	}
	before, err := os.Stat(path)
	if err != nil {
		return nil, fileError("look at the database file", err)
	}
	f := newFault(path, log)
	db := &DB{engine: SQLite, file: path, fault: f, log: log, reader: openFileReader(f), writer: openFileWriter(f)}
	// If two processes turn WAL on at once, one can get SQLITE_BUSY whatever its busy_timeout.
	err = again(ctx, func() error { return db.Ping(ctx) })
	switch code, _ := sqliteCode(err); code {
	case sqlite3.SQLITE_NOTADB:
		err = urlError("the file is no SQLite database; name another, or a new one")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		err = urlError("this user may not write to the file or to its folder: " + err.Error())
	}
	if err == nil {
		db.checkpointer, err = startCheckpointer(ctx, db.fault)
	}
	if err == nil {
		if after, _ := os.Stat(path); !os.SameFile(before, after) {
			// This may pass: it is opened again.
			err = fmt.Errorf("the file was replaced meanwhile: %w", syscall.ESTALE)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return db, nil
}

// openFileWriter opens a pool of one connection.
func openFileWriter(f *fault) *sql.DB {
	params := fileParams()
	params.Set("_txlock", "immediate") // of a transaction of database/sql, see beginFile
	return openPool(f, params, 1)
}

func openFileReader(f *fault) *sql.DB {
	params := fileParams()
	params.Set("_query_only", "1")
	return openPool(f, params, max(4, runtime.NumCPU()))
}

func openPool(f *fault, params url.Values, conns int) *sql.DB {
	pool := sql.OpenDB(watchedConnector{fileConnector(f.file, params), f})
	// A new connection reads the schema and applies the settings above, so all are kept.
	pool.SetMaxOpenConns(conns)
	pool.SetMaxIdleConns(conns)
	return pool
}

func fileConnector(path string, params url.Values) driver.Connector {
	return sqliteConnector{"file:" + (&url.URL{Path: filepath.ToSlash(path)}).EscapedPath() + "?" + params.Encode()}
}

// watchedConnector makes connections that keep statements prepared, to a file that must stay the
// same. It makes none after a lasting fault.
type watchedConnector struct {
	driver.Connector
	fault *fault
}

// Connect opens a connection.
func (c watchedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := c.fault.get(); err != nil {
		return nil, err
	}
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, c.fault.judge(ctx, err)
	}
	// A connection that is made later may be to a file that lies there now.
	if err := c.fault.look(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return keepPrepared(conn)
}

// sqliteConnector makes SQLite's connections.
type sqliteConnector struct{ dsn string }

// Connect implements [driver.Connector].
func (c sqliteConnector) Connect(context.Context) (driver.Conn, error) { return c.Driver().Open(c.dsn) }

// Driver implements [driver.Connector].
func (c sqliteConnector) Driver() driver.Driver { return &sqlite.Driver{} }

// slowCheck is after which time the log says that a file is being checked.
const slowCheck = 2 * time.Second

// checkLog refuses, before SQLite opens a file and replays its log, a log that is another file's.
// It looks only where there is a log although no process has the file open: after a crash. Where
// the stamps don't tell, the file with its log is checked as a whole.
func checkLog(ctx context.Context, file string, log *slog.Logger) error {
	for sure := false; ; sure = true {
		found, err := logOf(file)
		if err != nil {
			return fileError("read the database file and its log", err)
		}
		if found == noLog || found == ownLog {
			return nil
		}
		users, err := usersOf(file)
		if err != nil {
			return fileError("look who has the database file open", err)
		}
		switch {
		case users.open: // they have looked themselves
			return nil
		case !sure: // one may have closed it between the two looks
			continue
		case found == otherLog:
			return urlError("the log next to it, " + filepath.Base(file) + "-wal, is another file's: a copy was put in place after a crash, " +
				"and the log of the file before it was left. Nothing was changed. " + howToRestore)
		}
		return checkWhole(ctx, file, log)
	}
}

const howToRestore = "Put the copy in place with this program's command restore --from FILE, which removes that log"

// checkWhole refuses a file that is malformed once its log is replayed. The connection can't write,
// so nothing is changed.
func checkWhole(ctx context.Context, file string, log *slog.Logger) (err error) {
	timer := time.AfterFunc(slowCheck, func() {
		log.InfoContext(ctx, "checking the database after a crash, which takes the longer the larger it is", "file", file)
	})
	defer timer.Stop()
	pool := openPool(newFault(file, slog.New(slog.DiscardHandler)), url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(10000)"}}, 1)
	defer func() { err = errors.Join(err, pool.Close()) }()
	err = quickCheck(ctx, pool)
	if code, _ := sqliteCode(err); errors.Is(err, errMalformed) || code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB {
		return urlError(fmt.Sprintf("with its log, %s-wal, it is malformed (%v). Perhaps the one is a copy, and the other was left by a crash. "+
			"Nothing was changed. %s", filepath.Base(file), err, howToRestore))
	}
	return err
}

var errMalformed = errors.New("malformed")

// quickCheck returns errMalformed with the first thing that PRAGMA quick_check finds.
func quickCheck(ctx context.Context, q querier) error {
	found, err := column[string](ctx, q, "PRAGMA quick_check(1)")
	if err != nil {
		return err
	}
	if len(found) != 1 || found[0] != "ok" {
		return fmt.Errorf("%w: %q", errMalformed, found)
	}
	return nil
}
