package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pooledConn is a session behind a pooler, which may give the next transaction another session
// of the server. So each transaction is told the settings, in the same round trip. A query without
// a transaction is one, too.
type pooledConn struct {
	*serverConn
	told string
}

// BeginTx begins a transaction, for database/sql. The settings go with the BEGIN: one of them is
// how long the server waits for the next statement.
func (s *pooledConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	conn := s.Conn.Conn()
	if conn.IsClosed() {
		return nil, driver.ErrBadConn
	}
	text := "BEGIN"
	if level := sql.IsolationLevel(opts.Isolation); level != sql.LevelDefault {
		text += " ISOLATION LEVEL " + level.String()
	}
	if opts.ReadOnly {
		text += " READ ONLY"
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: text + "; " + s.told})
	if err != nil {
		return nil, s.judge(ctx, err)
	}
	return toldTx{ctx, tx}, nil
}

// toldTx is a transaction of a pooledConn.
type toldTx struct {
	ctx context.Context //nolint:containedctx // database/sql gives Commit and Rollback none
	tx  pgx.Tx
}

// Commit implements [driver.Tx].
func (t toldTx) Commit() error { return t.tx.Commit(t.ctx) }

// Rollback implements [driver.Tx].
func (t toldTx) Rollback() error { return t.tx.Rollback(t.ctx) }

// batch implements [batcher].
func (s *pooledConn) batch(ctx context.Context, batch *pgx.Batch, read func(int, pgx.BatchResults) error) (done int, err error) {
	if s.inTx() {
		return s.serverConn.batch(ctx, batch, read)
	}
	at := 0
	if batch.QueuedQueries[0].SQL == beginServer {
		at = 1
	}
	told := pgx.Batch{QueuedQueries: slices.Insert(slices.Clone(batch.QueuedQueries), at, &pgx.QueuedQuery{SQL: s.told})}
	done, err = s.serverConn.batch(ctx, &told, func(i int, results pgx.BatchResults) error {
		switch {
		case i < at:
			return read(i, results)
		case i > at:
			return read(i-1, results)
		}
		if _, err := results.Exec(); err != nil {
			return fmt.Errorf("set what the session relies on: %w", err)
		}
		return nil
	})
	if done > at {
		done--
	}
	return done, err
}

// ExecContext runs a statement.
func (s *pooledConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if s.inTx() {
		return s.serverConn.ExecContext(ctx, query, args)
	}
	var batch pgx.Batch
	batch.Queue(query, valuesOf(args)...)
	var changed int64
	done, err := s.batch(ctx, &batch, func(_ int, results pgx.BatchResults) error {
		tag, err := results.Exec()
		changed = tag.RowsAffected()
		return err
	})
	if done == 0 && pgconn.SafeToRetry(err) {
		return nil, driver.ErrBadConn
	}
	return driver.RowsAffected(changed), err
}

// QueryContext runs a query.
func (s *pooledConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if s.inTx() {
		return s.serverConn.QueryContext(ctx, query, args)
	}
	conn := s.Conn.Conn()
	if conn.IsClosed() {
		return nil, driver.ErrBadConn
	}
	ctx, cancel := s.within(ctx)
	var batch pgx.Batch
	batch.Queue(s.told)
	batch.Queue(query, valuesOf(args)...)
	r := &toldRows{results: conn.SendBatch(ctx, &batch), done: cancel}
	if err := r.open(); err != nil {
		err = s.judge(ctx, err)
		_ = r.Close() // it says the same
		if pgconn.SafeToRetry(err) {
			return nil, driver.ErrBadConn
		}
		return nil, err
	}
	return r, nil
}

func valuesOf(args []driver.NamedValue) []any {
	values := make([]any, len(args))
	for i := range args {
		values[i] = args[i].Value
	}
	return values
}

// toldRows are the rows of such a query.
type toldRows struct {
	results pgx.BatchResults
	rows    pgx.Rows
	columns []string
	more    bool // the row at hand is not taken yet
	done    context.CancelFunc
}

// open reads up to the first row: before it, nothing is known of the columns.
func (r *toldRows) open() (err error) {
	if _, err := r.results.Exec(); err != nil {
		return err
	}
	if r.rows, err = r.results.Query(); err != nil { //nolint:gocritic // Close closes them
		return err
	}
	r.more = r.rows.Next()
	for _, field := range r.rows.FieldDescriptions() {
		r.columns = append(r.columns, field.Name)
	}
	return r.rows.Err()
}

// Columns implements [driver.Rows].
func (r *toldRows) Columns() []string { return r.columns }

// Next implements [driver.Rows].
func (r *toldRows) Next(dest []driver.Value) error {
	if !r.more {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	values, err := r.rows.Values()
	if err != nil {
		return err
	}
	for i := range values {
		if dest[i], err = driver.DefaultParameterConverter.ConvertValue(values[i]); err != nil {
			return err
		}
	}
	r.more = r.rows.Next()
	return nil
}

// Close implements [driver.Rows].
func (r *toldRows) Close() error {
	defer r.done()
	if r.rows == nil {
		return r.results.Close()
	}
	r.rows.Close()
	return errors.Join(r.rows.Err(), r.results.Close())
}
