package sqldb

import (
	"context"
	"log/slog"
	"time"
)

// OpenWithin opens a server's database with other limits than the usual ones: of a statement, of
// the wait for a lock, and of an answer.
func OpenWithin(ctx context.Context, url string, statement, lock, answer time.Duration, log *slog.Logger) (*DB, error) {
	return openServerWithin(ctx, url, limits{statement: statement, lock: lock, idleTx: usual().idleTx, answer: answer}, log)
}
