package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// SQLite folds its log into the file, a checkpoint, at the commit that finds it long enough: that one, and all that wait behind it,
// wait until thousands of pages are written all over the file and synced, some hundred milliseconds. So a connection
// of its own does it beside them and before that. The commits still do where it doesn't keep up.
//
// Only a log that is folded to its end is used anew from its beginning, and until then it grows towards the commit that folds it. While
// thousands of pages are folded, others are committed; so what came meanwhile is folded too, and what came while that was. The pass
// that gets to the end syncs the file: by then most of it is on the disk, by writeOut, since commits that come meanwhile wait behind it.

const (
	checkpointEvery  = time.Second
	checkpointFrom   = 4000 // pages that the log has, 16 MB
	checkpointRest   = 4000 // pages that may have come while others were folded: of two large commits
	checkpointPasses = 5
)

// checkpointer folds the log of a database, until it is stopped.
type checkpointer struct {
	pool *sql.DB
	log  *slog.Logger
	file string
	stop context.CancelFunc
	done chan struct{}
}

func startCheckpointer(path string, log *slog.Logger) (*checkpointer, error) {
	// mode: it connects later, and a file that is gone by then must not be made anew.
	connector, err := fileConnector(path, url.Values{"mode": {"rw"}, "_pragma": {"busy_timeout(0)", "synchronous(FULL)"}})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &checkpointer{pool: sql.OpenDB(connector), log: log, file: path, stop: stop, done: make(chan struct{})}
	c.pool.SetMaxOpenConns(1)
	go c.run(ctx)
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
		if err := c.fold(ctx); err != nil && ctx.Err() == nil && time.Since(warned) >= warnEvery {
			warned = time.Now()
			c.log.WarnContext(ctx, "SQLite's log can't be folded into its file now, and grows", "error", err)
		}
	}
}

// fold folds a long log, to its end if it can. Where very many pages come meanwhile, it would hardly get there: they are for the next
// look, since much of it is the same pages again.
func (c *checkpointer) fold(ctx context.Context) error {
	for pass := range checkpointPasses {
		waiting, all, err := c.checkpoint(ctx, "NOOP")
		if err != nil || waiting == 0 || all < checkpointFrom || pass > 0 && waiting >= checkpointRest {
			return err
		}
		if _, _, err := c.checkpoint(ctx, "PASSIVE"); err != nil {
			return err
		}
		if pass == 0 {
			writeOut(ctx, c.file)
		}
	}
	return nil
}

// checkpoint does a checkpoint of a kind that never waits for anybody, and returns how many pages are only in the log then, and how
// many the log has, but for those that were committed while it was at it: NOOP knows of all.
func (c *checkpointer) checkpoint(ctx context.Context, kind string) (waiting, all int, err error) {
	var busy, folded int // busy: another is at it
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
