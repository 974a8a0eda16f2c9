package sqldb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

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
