package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/schema"
)

// OpenDatabase marks an unusable URL as an error that the person at the shell can fix.
func OpenDatabase[T any](open func() (T, error)) (T, error) {
	db, err := open()
	if errors.Is(err, sqldb.ErrURL) {
		err = Usage(fmt.Errorf("--database-url: %w", err))
	}
	return db, err
}

// CheckDatabase refuses a URL that can never be used, before the process starts anything.
func CheckDatabase(url string) error {
	if err := sqldb.CheckURL(url); err != nil {
		return Usagef("--database-url: %w", err)
	}
	return nil
}

// answersWithin is how long a command that a person waits for tries to reach the database.
const answersWithin = 10 * time.Second

// OpenExisting is [OpenDatabase] for a command that looks into a process's database, and that a
// person waits for. It refuses a file that does not exist: in the wrong folder, the command would
// create an empty one. A server that doesn't answer is [Unreachable].
func OpenExisting[T any](ctx context.Context, url string, open func(context.Context) (T, error)) (db T, err error) {
	if err := CheckDatabase(url); err != nil {
		return db, err
	}
	if path, file := strings.CutPrefix(strings.TrimSpace(url), "sqlite:"); file {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return db, Usagef("--database-url: there is no file %s: name the database that the process serves, as its own --database-url or OMI_DATABASE_URL does", path)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	db, err = OpenDatabase(func() (T, error) { return open(ctx) })
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		what := "no database server answers at --database-url"
		if errors.Is(err, sqldb.ErrReadOnly) {
			what = "no database server at --database-url takes writes (to look into a standby, add target_session_attrs=any to the URL)"
		}
		err = Unreachable(fmt.Errorf("%s within %s: %w", what, answersWithin, err))
	}
	return db, err
}

// Restore is the grammar of the command that replaces a process's SQLite database by a copy.
type Restore struct {
	From string `required:"" placeholder:"FILE" help:"A copy of the database, which is only read."`
	JSON bool   `help:"Print one JSON object."`
}

// Help returns the text that --help shows in addition to the flags.
func (c Restore) Help() string {
	return `The copy is a file made by SQLite's .backup or VACUUM INTO, or a snapshot of the file with its -wal.

First stop the process, and every other one that uses the same file: the command refuses while a process has it open.

The command checks that SQLite finds the copy sound, and that it is a database of this kind of process. Then the copy
replaces the database. The old one is kept next to it, as FILE.before-restore-TIME: remove it when the restored one serves.

Don't copy a backup over the file by hand. After a crash, SQLite's log (FILE-wal) lies next to the file, and SQLite would
replay it into the copy, which makes a mix of both. Each start looks for that, and refuses it with exit code 2.

Restore a server's database (PostgreSQL, CockroachDB) with the server's own tools.

Exit codes: 0 restored, 1 failed, 2 change something first: the copy, the URL, or a process that runs.`
}

// Run restores the database of an owner.
func (c Restore) Run(url string, owner sqldb.Owner) error {
	var done sqldb.Restored
	err := Run(NewLog(os.Stderr, slog.LevelWarn), func(ctx context.Context) (err error) {
		done, err = sqldb.Restore(ctx, url, c.From, owner, migrations(owner))
		return err
	})
	switch {
	case err != nil:
		return c.failed(err, owner)
	case done.File == "":
		return Refused(errors.New("stopped before anything was changed"))
	case c.JSON:
		return PrintJSON(done)
	}
	text := printable.Sprintf("Restored: %s is the copy now.\n", done.File)
	if done.Kept != "" {
		text += printable.Sprintf("The old database is kept as %s. Remove it, and the files whose names begin with it, when the restored one serves.\n", done.Kept)
	}
	return Print("%s", printable.Composed(text))
}

func (c Restore) failed(err error, owner sqldb.Owner) error {
	switch {
	case errors.Is(err, sqldb.ErrURL):
		return Usage(fmt.Errorf("--database-url: %w", err))
	case errors.Is(err, sqldb.ErrCopy):
		return Usage(fmt.Errorf("--from: %w", err))
	case errors.Is(err, sqldb.ErrInUse):
		return Usage(err)
	}
	return fmt.Errorf("restore %s database: %w", owner, err)
}

func migrations(owner sqldb.Owner) fs.FS {
	switch owner {
	case sqldb.Registry:
		return schema.Registry()
	case sqldb.Auth:
		return schema.Auth()
	default:
		return schema.Billing()
	}
}
