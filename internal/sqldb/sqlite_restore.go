package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What a person must change before a copy can be restored, besides [ErrURL].
var (
	ErrCopy  = errors.New("this copy can't be restored")
	ErrInUse = errors.New("the database is in use")
)

// Restored says where things are after [Restore].
type Restored struct {
	File string `json:"file"`
	// Kept is where the earlier database lies now, with its log if it had one; empty: there was
	// none.
	Kept string `json:"kept,omitempty"`
}

// Restore replaces the database that url names by a copy of a SQLite database, which may have a log
// next to it. It checks the copy first, keeps the old database under another name, and
// removes nothing. The copy is only read. A server's URL is [ErrURL].
//
// What belonged to the old file goes with it: SQLite would replay its log into the new one.
func Restore(ctx context.Context, url, from string, owner Owner, fsys fs.FS) (Restored, error) {
	rest, isFile := strings.CutPrefix(strings.TrimSpace(url), "sqlite:")
	if !isFile {
		if err := CheckURL(url); err != nil {
			return Restored{}, err
		}
		return Restored{}, urlError("it names a server, and only a SQLite database is restored from a file: restore a server's database " +
			"with the server's own tools (pg_restore, RESTORE), while no process of ours uses it")
	}
	file, err := sqlitePath(rest)
	if err != nil {
		return Restored{}, err
	}
	file, from = realPath(file), realPath(from) // a log lies next to the file itself
	if info, err := os.Lstat(file); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return Restored{}, urlError(file + " is a link to a file that is not there: name that file, or remove the link")
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return Restored{}, fileError("create the folder of the database", err)
	}
	old, err := lockOld(file)
	if err != nil {
		return Restored{}, err
	}
	if old != nil {
		defer func() { _ = old.Close() }() // it ends the lock
	}
	fresh, err := copyNextTo(file, from, old)
	if fresh != "" {
		defer remove(fresh)
	}
	if err == nil {
		err = checkCopy(ctx, fresh, from, owner, fsys)
	}
	if err != nil {
		return Restored{}, err
	}
	return putInPlace(file, fresh, old)
}

// lockOld takes SQLite's own exclusive lock on the database, so that no process has it open, or
// opens it meanwhile. It returns nil if there is no database.
func lockOld(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError("open the database file", err)
	}
	users, err := lockWhole(f)
	if err == nil && users.open {
		err = fmt.Errorf("%w: %s has %s open. Stop it, and what else uses this file (systemctl stop, docker stop, kill), and run this "+
			"command again; nothing was changed", ErrInUse, users, file)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copyNextTo copies a database, with what SQLite needs of it, next to the file that it is to
// replace, and returns the copy's name.
func copyNextTo(file, from string, old *os.File) (fresh string, err error) {
	info, err := os.Stat(from)
	switch {
	case err != nil:
		return "", copyError(from, err)
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%w: %s is not a file", ErrCopy, from)
	}
	if old != nil {
		if same, err := old.Stat(); err == nil && os.SameFile(same, info) {
			return "", fmt.Errorf("%w: %s is the database itself. To have it checked, and the log of another file removed, rename it first", ErrCopy, from)
		}
	}
	users, err := usersOf(from)
	if err != nil {
		return "", copyError(from, err)
	}
	if users.open {
		return "", fmt.Errorf("%w: %s has %s open, which may change while it is copied. Take a copy of it with SQLite: sqlite3 %s \".backup COPY\"",
			ErrCopy, users, from, from)
	}
	fresh = file + ".restoring-" + strconv.FormatUint(uint64(rand.Uint32()), 36) //nolint:gosec // no secret
	for _, suffix := range []string{"", "-wal", "-journal"} {
		err := copyFile(fresh+suffix, from+suffix, old)
		if suffix != "" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fresh, err
		}
	}
	return fresh, nil
}

// copyFile copies a file for the owner of the old one alone.
func copyFile(to, from string, old *os.File) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return copyError(from, err)
	}
	defer func() { _ = in.Close() }() // it was read
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fileError("make the copy next to the database", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := ownAs(out, old); err != nil {
		return fileError("give the copy the database's owner; run the command as that user, or as root", err)
	}
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// ownAs gives a new file the owner and the mode of the old one. Where there is none, what root
// makes gets the folder's owner, whose process will use it.
func ownAs(f, old *os.File) error {
	if old != nil {
		info, err := old.Stat()
		if err != nil {
			return err
		}
		return errors.Join(giveTo(f, old), f.Chmod(info.Mode().Perm()))
	}
	if os.Geteuid() != 0 {
		return nil
	}
	folder, err := os.Open(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	return errors.Join(giveTo(f, folder), folder.Close())
}

func copyError(from string, err error) error {
	if exhausted(err) {
		return fmt.Errorf("read %s: %w", from, err)
	}
	return fmt.Errorf("%w: %w", ErrCopy, err)
}

// checkCopy refuses a copy that is malformed, or another process's, and folds its log into it.
func checkCopy(ctx context.Context, fresh, from string, owner Owner, fsys fs.FS) (err error) {
	switch found, err := logOf(fresh); {
	case err != nil:
		return err
	case found == otherLog:
		return fmt.Errorf("%w: the log next to it, %s-wal, is another file's. If %s was copied by itself, without a log, rename it and restore that",
			ErrCopy, from, from)
	}
	silent := newFault(fresh, slog.New(slog.DiscardHandler))
	pool := openPool(silent, url.Values{"mode": {"rw"}, "_pragma": {"synchronous(FULL)"}}, 1)
	defer func() { err = errors.Join(err, pool.Close()) }() // which removes the log
	db := &DB{engine: SQLite, reader: pool, writer: pool, fault: silent}
	if err := ofKind(ctx, db, owner, fsys); err != nil {
		return refusedCopy(from, silent.judge(ctx, err))
	}
	if err := quickCheck(ctx, pool); err != nil {
		return refusedCopy(from, silent.judge(ctx, err))
	}
	return foldAll(ctx, pool)
}

// ofKind refuses a database that is not the owner's, or of a later version of this program.
func ofKind(ctx context.Context, db *DB, owner Owner, fsys fs.FS) error {
	have, err := db.contents(ctx, db.reader)
	if err != nil {
		return err
	}
	switch objection := have.objection(owner); {
	case objection != "":
		return fmt.Errorf("%w: it is %s", ErrCopy, objection)
	case have.owner == unowned:
		return fmt.Errorf("%w: it is a SQLite database, but not %s", ErrCopy, owner)
	}
	_, known, err := db.migrations(fsys)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(have.applied, func(v int64) bool { return !slices.Contains(known, v) }) {
		return fmt.Errorf("%w: its schema is newer than this program: use the program of the version that wrote it", ErrCopy)
	}
	return nil
}

// refusedCopy names the copy in an error that is about it.
func refusedCopy(from string, err error) error {
	switch {
	case errors.Is(err, ErrCopy):
		return fmt.Errorf("%s: %w", from, err)
	case errors.Is(err, errMalformed):
		return fmt.Errorf("%s: %w: %w", from, ErrCopy, err)
	case errors.Is(err, ErrFault):
		if answer := sqliteError(err); answer != nil {
			return fmt.Errorf("%s: %w: %w", from, ErrCopy, answer)
		}
	}
	return fmt.Errorf("check %s: %w", from, err)
}

// foldAll has SQLite write its log into the file.
func foldAll(ctx context.Context, pool *sql.DB) error {
	var busy, all, folded int
	if err := pool.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &all, &folded); err != nil {
		return fmt.Errorf("fold the copy's log into it: %w", err)
	}
	return nil
}

// putInPlace gives the new file the old one's name, and the old one another. A crash in the middle
// leaves the new file with the old one's log, which the next start refuses, rather than an old file
// without its log, or none: those would be taken for a database.
func putInPlace(file, fresh string, old *os.File) (Restored, error) {
	done := Restored{File: file}
	if err := syncPath(fresh); err != nil {
		return Restored{}, err
	}
	if old != nil {
		done.Kept = file + ".before-restore-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := os.Link(file, done.Kept); err != nil {
			return Restored{}, fmt.Errorf("keep the old database under another name: %w", err)
		}
	}
	if err := os.Rename(fresh, file); err != nil {
		return Restored{}, fmt.Errorf("put the copy in place: %w", err)
	}
	// A journal or a log without its database is of no use to anybody, but then it is kept, too.
	for _, suffix := range []string{"-wal", "-journal"} {
		to := file + ".left" + suffix
		if old != nil {
			to = done.Kept + suffix
		}
		if err := os.Rename(file+suffix, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return done, fmt.Errorf("the copy is in place, and %s, which is the old database's, could not be moved away: do so before a process starts: %w",
				file+suffix, err)
		}
	}
	if err := os.Remove(file + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return done, fmt.Errorf("the copy is in place, and %s-shm could not be removed: do so before a process starts: %w", file, err)
	}
	return done, syncPath(filepath.Dir(file))
}

// syncPath has the disk hold a file or a folder.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// remove removes what is left of a copy that was not put in place.
func remove(fresh string) {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		_ = os.Remove(fresh + suffix) // most are not there
	}
}
