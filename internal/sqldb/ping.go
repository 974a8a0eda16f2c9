package sqldb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Ping says whether the database can be worked with now: it answers, takes writes, and has no
// lasting fault. If a server answers and still can't be worked with, the error says why.
//
// needs are rows that the process can't work without, such as "t WHERE id = 0". A server reads each
// of them, and the owner's row. A row of needs may be missing, but its table may not. Only reading
// shows that a table is locked, or that a range of CockroachDB has lost its quorum. Name rows by
// their primary key, so that no size of the table makes this slow.
func (db *DB) Ping(ctx context.Context, needs ...string) error {
	if db.engine == SQLite {
		return db.pingFile(ctx)
	}
	if err := db.pingServer(ctx, needs); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	return nil
}

// pingServer asks whether the session may write, and reads what is needed. A gateway of
// CockroachDB, or a pooler, can answer without any table.
func (db *DB) pingServer(ctx context.Context, needs []string) error {
	standby := "false"
	if db.engine == Postgres {
		standby = "pg_is_in_recovery()"
	}
	owned, rows := "true", "0"
	if len(needs) > 0 {
		owned = "EXISTS (SELECT 1 FROM " + ownerTable + ")"
		rows = "(SELECT count(*) FROM (SELECT 1 FROM " + strings.Join(needs, " UNION ALL SELECT 1 FROM ") + ") AS needed)"
	}
	era := db.sessions.era.Load()
	var readOnly string
	var recovering, found bool
	query := "SELECT current_setting('transaction_read_only'), " + standby + ", " + owned + ", " + rows
	err := db.QueryRow(ctx, query).Scan(&readOnly, &recovering, &found, new(int))
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

// undefined says whether err means that a table is missing, or hidden from this role.
func undefined(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && (answer.Code == "42P01" || answer.Code == insufficientPrivilege)
}

// pingFile is Ping for SQLite. It writes only after a write has failed, for instance on a full
// disk: whether that has passed.
func (db *DB) pingFile(ctx context.Context) error {
	if err := db.fault.look(ctx); err != nil {
		return err
	}
	if _, err := db.Exec(ctx, "SELECT 1"); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	if db.fault.failed.Load() == nil {
		return nil
	}
	err := db.plainTx(ctx, func(tx *Tx) error {
		var version int
		// No SELECT: so the commit gets a stamp.
		return tx.QueryRow(ctx, "PRAGMA user_version").Scan(&version)
	})
	if err != nil {
		return fmt.Errorf("write to the database: %w", err)
	}
	return nil
}
