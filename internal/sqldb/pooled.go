package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// queryTold runs a query outside of a transaction, after what the session is told for this one
// alone, in one round trip: the server takes both for one transaction.
func (c *serverConn) queryTold(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	conn := c.Conn.Conn()
	if conn.IsClosed() {
		return nil, driver.ErrBadConn
	}
	ctx, cancel := c.within(ctx)
	var batch pgx.Batch
	batch.Queue(c.told)
	batch.Queue(query, valuesOf(args)...)
	r := &toldRows{results: conn.SendBatch(ctx, &batch), done: cancel}
	if err := r.open(); err != nil {
		err = c.judge(ctx, err)
		_ = r.Close() // it says the same
		if pgconn.SafeToRetry(err) {
			return nil, driver.ErrBadConn
		}
		return nil, err
	}
	return r, nil
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
