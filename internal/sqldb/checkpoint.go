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

const (
	checkpointEvery = time.Second
	checkpointFrom  = 4000 // pages that are only in the log, 16 MB
	// checkpointPasses is how often it follows what was committed meanwhile: only a log that is folded to its end is used anew from
	// its beginning, and doesn't grow.
	checkpointPasses = 3
)

// checkpointer folds the log of a database, until it is stopped.
type checkpointer struct {
	pool *sql.DB
	log  *slog.Logger
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
	c := &checkpointer{pool: sql.OpenDB(connector), log: log, stop: stop, done: make(chan struct{})}
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

func (c *checkpointer) fold(ctx context.Context) error {
	waiting, err := c.checkpoint(ctx, "NOOP")
	if err != nil || waiting < checkpointFrom {
		return err
	}
	for range checkpointPasses {
		if waiting, err = c.checkpoint(ctx, "PASSIVE"); err != nil || waiting == 0 {
			return err
		}
	}
	return nil
}

// checkpoint does a checkpoint of a kind that never waits for anybody, and returns how many pages are only in the log then.
func (c *checkpointer) checkpoint(ctx context.Context, kind string) (waiting int, err error) {
	var busy, all, folded int // busy: another is at it
	if err := c.pool.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+kind+")").Scan(&busy, &all, &folded); err != nil {
		return 0, fmt.Errorf("checkpoint: %w", err)
	}
	return all - folded, nil
}

func (c *checkpointer) close() error {
	c.stop()
	<-c.done
	return c.pool.Close()
}
