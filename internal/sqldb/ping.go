package sqldb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
)

// Ping says whether the database can be worked with now: it answers, can be written, and has no
// lasting fault. Where a server has none of this to offer, the error says what it lacks.
//
// needs are the rows that the process can't work without, such as "t WHERE id = 0". A server is
// asked for each of them. A row may be missing, and its table may not: only reading shows a table
// that is locked, and a range of CockroachDB that has lost its quorum. Give each by its primary
// key, so that no number of rows makes it slow.
func (db *DB) Ping(ctx context.Context, needs ...string) error {
	if db.engine == SQLite {
		return db.pingFile(ctx)
	}
	if err := db.pingServer(ctx, needs); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	return nil
}

// pingServer asks whether the session may write, and reads what is needed: a gateway of CockroachDB
// or a pooler answers by itself what needs no table.
func (db *DB) pingServer(ctx context.Context, needs []string) error {
	standby := "false"
	if db.engine == Postgres {
		standby = "pg_is_in_recovery()"
	}
	tables, rows := "true", "0"
	if len(needs) > 0 {
		tables = "EXISTS (SELECT 1 FROM " + goose.DefaultTablename + ")"
		rows = "(SELECT count(*) FROM (SELECT 1 FROM " + strings.Join(needs, " UNION ALL SELECT 1 FROM ") + ") AS needed)"
	}
	era := db.sessions.era.Load()
	var readOnly string
	var recovering, found bool
	query := "SELECT current_setting('transaction_read_only'), " + standby + ", " + tables + ", " + rows
	err := db.writer.QueryRowContext(ctx, query).Scan(&readOnly, &recovering, &found, new(int))
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
