package sqldb

import (
	"context"
	"log/slog"
	"time"
)

// MustChange is the function that [DB.Migrate] makes on PostgreSQL.
const MustChange = mustChange

// OpenWithin opens a server's database with other limits than the usual ones: of a statement, of
// the wait for a lock, and of an answer.
func OpenWithin(ctx context.Context, url string, statement, lock, answer time.Duration, log *slog.Logger) (*DB, error) {
	return openServerWithin(ctx, url, limits{statement: statement, lock: lock, idleTx: usual().idleTx, answer: answer}, log)
}

// OpenAsCockroach opens a server's database, and takes it for CockroachDB.
func OpenAsCockroach(ctx context.Context, url string, log *slog.Logger) (*DB, error) {
	db, err := openServer(ctx, url, log)
	if err == nil {
		db.engine = Cockroach
	}
	return db, err
}

// Doubtful reports whether a fault that may pass may also be permanent.
func Doubtful(err error) bool { return doubtful(err) }
