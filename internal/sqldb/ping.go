package sqldb

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
)

// Ping says whether the database can be worked with now: it answers, can be written, and has no
// lasting fault. Where a server has none of this to offer, the error says what it lacks.
func (db *DB) Ping(ctx context.Context) error {
	if db.engine == SQLite {
		return db.pingFile(ctx)
	}
	if err := db.pingServer(ctx); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	return nil
}

// pingServer reads a row that is kept: a gateway of CockroachDB or a pooler answers by itself what
// needs none. The session says whether it may write.
func (db *DB) pingServer(ctx context.Context) error {
	table := "pg_catalog.pg_class"
	if db.migrated.Load() {
		table = goose.DefaultTablename
	}
	standby := "false"
	if db.engine == Postgres {
		standby = "pg_is_in_recovery()"
	}
	era := db.sessions.era.Load()
	var readOnly string
	var recovering, found bool
	query := "SELECT current_setting('transaction_read_only'), " + standby + ", EXISTS (SELECT 1 FROM " + table + ")"
	err := db.writer.QueryRowContext(ctx, query).Scan(&readOnly, &recovering, &found)
	switch {
	case err != nil && errors.Is(err, context.DeadlineExceeded) && db.writer.Stats().InUse >= maxConns:
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case undefined(err):
		return fmt.Errorf("%w: %w", ErrNoTables, err)
	case err != nil:
		return err
	case readOnly != "on" && found:
		return nil
	case readOnly != "on":
		return ErrNoTables
	}
	db.sessions.end(era)
	if recovering {
		return fmt.Errorf("it is a standby, which has not been promoted: %w", ErrReadOnly)
	}
	return ErrReadOnly
}

// undefined says whether err is that a table is not there, or not for this role.
func undefined(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && (answer.Code == "42P01" || answer.Code == insufficientPrivilege)
}
