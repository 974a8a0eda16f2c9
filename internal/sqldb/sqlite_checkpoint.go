package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"
)

// A checkpoint copies the pages of SQLite's log into the file. SQLite does it in the commit that
// finds the log long enough: that commit, and all that wait behind it, wait until thousands of
// pages are written all over the file and synced, which takes some hundred milliseconds. The
// checkpointer does it earlier, on a connection of its own, while commits go on. If it doesn't keep
// up, a commit still does it.
//
// SQLite starts the log again from its beginning only after a checkpoint that got to its end; until
// then the log grows. Commits add pages while a checkpoint runs, so further passes copy those too.

const (
	checkpointEvery  = time.Second
	checkpointFrom   = 4000 // pages in the log from which it is checkpointed, 16 MB
	checkpointRest   = 4000 // pages that a further pass copies at most: those of two large commits
	checkpointPasses = 5
	// stuckLooks is how many looks in a row must find a long log that can't be checkpointed before
	// the checkpointer warns.
	stuckLooks = 5
	// logKept is how many bytes the log's file keeps after a checkpoint. The log is shorter than
	// that under load.
	logKept = 64 << 20
)

// checkpointer checkpoints the log of a database, and watches its files, until it is stopped.
type checkpointer struct {
	pool  *sql.DB
	fault *fault
	stop  context.CancelFunc
	done  chan struct{}

	folded   int // pages that were copied when the last look ended
	stuck    int // looks since then that copied none although many wait
	warnedAt int // pages in the log at the last warning; 0: there was none
}

// startCheckpointer opens the files. While its one connection is open, SQLite removes neither the
// log nor its index: if they change, another process has changed them.
func startCheckpointer(ctx context.Context, f *fault) (*checkpointer, error) {
	c, err := newCheckpointer(ctx, f)
	if err != nil {
		return nil, err
	}
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.done = make(chan struct{})
	go c.run(ctx)
	return c, nil
}

func newCheckpointer(ctx context.Context, f *fault) (*checkpointer, error) {
	// mode: a file that is gone by then must not be created again.
	connector := fileConnector(f.file, url.Values{"mode": {"rw"}, "_pragma": {"busy_timeout(0)", "synchronous(FULL)"}})
	c := &checkpointer{pool: sql.OpenDB(connector), fault: f}
	c.pool.SetMaxOpenConns(1)
	var tables int
	read := func() error { return c.pool.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&tables) }
	if err := again(ctx, read); err != nil {
		return nil, errors.Join(f.judge(ctx, err), c.pool.Close())
	}
	f.watch()
	return c, nil
}

func (c *checkpointer) run(ctx context.Context) {
	defer close(c.done)
	var warned time.Time
	ticker := time.NewTicker(checkpointEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if c.fault.look(ctx) != nil { // the file is gone, or must not be written to
			return
		}
		if err := c.look(ctx); err != nil && ctx.Err() == nil && time.Since(warned) >= warnEvery {
			warned = time.Now()
			c.fault.log.WarnContext(ctx, "SQLite's log can't be checkpointed now, and grows", "file", c.fault.file, "error", err)
		}
	}
}

// look checkpoints a long log. If the log could not be checkpointed for some looks in a row, it
// warns, and warns again each time that the log has doubled.
func (c *checkpointer) look(ctx context.Context) error {
	waiting, all, err := c.fold(ctx)
	if err != nil {
		return c.fault.judge(ctx, err)
	}
	if folded := all - waiting; waiting < checkpointFrom || folded != c.folded {
		c.folded, c.stuck, c.warnedAt = folded, 0, 0
		return nil
	}
	c.stuck++
	if c.stuck < stuckLooks || all < 2*c.warnedAt {
		return nil
	}
	c.warnedAt = all
	c.fault.log.WarnContext(ctx, "SQLite's log can't be checkpointed, and grows, because of a long read transaction. Look for another "+
		"process that has one open, such as a shell (sqlite3) or a backup; `fuser FILE` lists the processes that have the file open",
		"file", c.fault.file, "log_bytes", logBytes(c.fault.file))
	return nil
}

// logBytes returns the size of a database file's log.
func logBytes(file string) int64 {
	info, err := os.Stat(realPath(file) + "-wal")
	if err != nil {
		return 0
	}
	return info.Size()
}

// LogBytes returns the size of the file of SQLite's log, including pages that are checkpointed
// already; 0 for a server.
func (db *DB) LogBytes() int64 {
	if db.engine != SQLite {
		return 0
	}
	return logBytes(db.file)
}

// fold checkpoints a long log, to its end if it can. If too many pages come meanwhile, it leaves
// them to the next look, because many will be the same pages again. It returns the result of the
// last checkpoint.
func (c *checkpointer) fold(ctx context.Context) (waiting, all int, err error) {
	for pass := range checkpointPasses {
		waiting, all, err = c.checkpoint(ctx, "NOOP")
		if err != nil || waiting == 0 || all < checkpointFrom || pass > 0 && waiting >= checkpointRest {
			return waiting, all, err
		}
		if _, _, err := c.checkpoint(ctx, "PASSIVE"); err != nil {
			return 0, 0, err
		}
	}
	return waiting, all, nil
}

// checkpoint runs a checkpoint of a kind that never waits for another connection. It returns how
// many pages are only in the log then, and how many the log has. PASSIVE doesn't count pages that
// were committed while it ran; NOOP, which copies nothing, counts all.
func (c *checkpointer) checkpoint(ctx context.Context, kind string) (waiting, all int, err error) {
	var busy, folded int // busy: another connection is checkpointing
	if err := c.pool.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+kind+")").Scan(&busy, &all, &folded); err != nil {
		return 0, 0, fmt.Errorf("checkpoint: %w", err)
	}
	return all - folded, all, nil
}

func (c *checkpointer) close() error {
	c.stop()
	<-c.done
	return c.pool.Close()
}
