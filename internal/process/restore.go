package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/schema"
)

// Restore is the grammar of the command that replaces a process's SQLite database by a copy.
type Restore struct {
	From string `required:"" placeholder:"FILE" help:"The copy, which is only read: of SQLite's .backup or VACUUM INTO, or a snapshot of the file with its -wal."`
	JSON bool   `help:"Print one JSON object."`
}

// Help returns the text that --help shows in addition to the flags.
func (c Restore) Help() string {
	return `Stop the process first, and every other one that uses the same file: the command refuses while one has it open.

The copy is checked: that SQLite finds it sound, and that it is a database of this kind of process. Then it takes the place of the
database. The old one is kept next to it, as FILE.before-restore-TIME: remove it when the restored one serves.

Don't copy a backup over the file by hand. After a crash, SQLite's log (FILE-wal) lies next to it; SQLite would replay that into the
copy, which makes a mix of both. Each start looks for that, and refuses it with exit code 2.

A server's database (PostgreSQL, CockroachDB) is restored with the server's own tools.

Exit codes: 0 restored, 1 failed, 2 there is something to change first: the copy, the URL, or a process that runs.`
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
		text += printable.Sprintf("The old database is kept as %s. Remove it, and what begins with its name, when the restored one serves.\n", done.Kept)
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

type restoreSubscriber struct {
	Restore  `embed:""`
	Database subscriberDatabase `embed:""`
}

// Run restores the database of the process.
func (c *restoreSubscriber) Run(owner sqldb.Owner) error { return c.Restore.Run(c.Database.URL, owner) }
