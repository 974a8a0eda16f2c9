package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// The way to a server and back is much of what a short statement costs there. So a connection to PostgreSQL sends together what
// needn't wait for each other's answers: the BEGIN with the first statement of its transaction, the statements of a [Pipeline],
// and the last ones of a transaction with the COMMIT.

// serverConnector makes connections that do so, to PostgreSQL.
type serverConnector struct {
	driver.Connector

	engine   Engine
	sessions *sessions
	limits   limits
	told     string // what each transaction is told, see settings; "": the session is
}

// Connect opens a connection.
func (c serverConnector) Connect(ctx context.Context) (driver.Conn, error) {
	era := c.sessions.era.Load()
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := conn.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the PostgreSQL driver's connection is a %T", conn), conn.Close())
	}
	one := &session{Conn: inner, all: c.sessions, era: era, answer: c.limits.answer}
	if c.engine != Postgres { // CockroachDB's transactions are cockroach-go's affair
		return one, nil
	}
	return &serverConn{session: one, told: c.told}, nil
}

// serverConn is a connection, used by one goroutine at a time as database/sql does it.
type serverConn struct {
	*session
	told    string // what each transaction is told; "": nothing
	unbegun bool   // a transaction is begun, and its BEGIN not sent
	failed  bool   // it failed before the server had begun it
	last    []step // what goes with its COMMIT
}

// BeginTx begins a transaction, of which the server hears with its first statement.
func (c *serverConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c.unbegun, c.failed, c.last = false, false, nil
	if opts.ReadOnly || sql.IsolationLevel(opts.Isolation) != sql.LevelSerializable { // not by InTx
		return c.beginAtOnce(ctx, opts)
	}
	if c.Conn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	c.unbegun = true
	return serverTx{ctx, c}, nil
}

func (c *serverConn) beginAtOnce(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := c.session.BeginTx(ctx, opts)
	if err != nil || c.told == "" {
		return tx, err
	}
	if err := c.send(ctx, c.telling()); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
}

// telling is what a transaction is told.
func (c *serverConn) telling() []step {
	if c.told == "" {
		return nil
	}
	return []step{{what: "set what the session relies on", query: c.told}}
}

// ExecContext runs a statement, or a [Pipeline] if that is the only argument.
func (c *serverConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if len(args) == 1 {
		if p, ok := args[0].Value.(*Pipeline); ok {
			return driver.ResultNoRows, c.pipeline(ctx, p)
		}
	}
	if !c.owes() && (c.told == "" || c.inTx()) {
		return c.session.ExecContext(ctx, query, args)
	}
	values := valuesOf(args)
	var changed int64
	err := c.send(ctx, []step{{query: query, args: values, affected: func(n int64) error {
		changed = n
		return nil
	}}})
	return driver.RowsAffected(changed), err
}

func (c *serverConn) pipeline(ctx context.Context, p *Pipeline) error {
	if p.commit {
		for i := range p.steps {
			c.last = append(c.last, p.steps[i].counted())
		}
		return nil
	}
	return c.send(ctx, p.steps)
}

// QueryContext runs a query. Its answer is read by database/sql, row by row, so it goes by itself.
func (c *serverConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.settle(ctx); err != nil {
		return nil, err
	}
	if c.told != "" && !c.inTx() {
		return c.queryTold(ctx, query, args)
	}
	return c.session.QueryContext(ctx, query, args)
}

func valuesOf(args []driver.NamedValue) []any {
	values := make([]any, len(args))
	for i := range args {
		values[i] = args[i].Value
	}
	return values
}

// PrepareContext prepares a statement.
func (c *serverConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	stmt, err := c.Conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return serverStmt{stmt, c, query}, nil
}

// owes says whether something has to be sent before a statement, or may not be sent.
func (c *serverConn) owes() bool { return c.unbegun || c.failed || len(c.last) > 0 }

// settle sends what has to be sent before a statement that can't go with it.
func (c *serverConn) settle(ctx context.Context) error {
	if !c.owes() {
		return nil
	}
	return c.send(ctx, nil)
}

// send runs statements, after what has to be sent before them, all in one round trip. It returns the error of the first that
// fails: the server skips the others.
func (c *serverConn) send(ctx context.Context, steps []step) error {
	conn := c.Conn.Conn()
	switch {
	case c.failed: // else they would be done outside of the transaction
		return fmt.Errorf("the transaction has failed: %w", pgx.ErrTxClosed)
	case conn.IsClosed():
		return driver.ErrBadConn
	}
	within := c.unbegun || c.inTx()
	if !within {
		steps = append(c.telling(), steps...)
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	done, err := sendAll(ctx, conn, append(c.before(), steps...))
	if err == nil {
		return nil
	}
	c.failed = within && conn.PgConn().TxStatus() == idle
	if !within && done == 0 && pgconn.SafeToRetry(err) {
		return driver.ErrBadConn // database/sql then takes another connection
	}
	return c.judge(ctx, err)
}

// before takes what has to be sent before anything else.
func (c *serverConn) before() (steps []step) {
	if c.unbegun {
		steps = append(steps, step{what: "begin", query: "BEGIN ISOLATION LEVEL SERIALIZABLE"})
		steps = append(steps, c.telling()...)
	}
	steps = append(steps, c.last...)
	c.unbegun, c.last = false, nil
	return steps
}

// idle is the server's word for a connection without a transaction.
const idle = 'I'

// sendAll sends statements and reads their answers. It returns how many were done before an error.
func sendAll(ctx context.Context, conn *pgx.Conn, steps []step) (done int, err error) {
	batch := pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, 0, len(steps))}
	for i := range steps {
		batch.Queue(steps[i].query, steps[i].args...)
	}
	results := conn.SendBatch(ctx, &batch)
	defer func() {
		if closed := results.Close(); err == nil { // else it is the same
			err = closed
		}
	}()
	for i := range steps {
		if err := steps[i].read(results); err != nil {
			if steps[i].lost(err) {
				batch.QueuedQueries = nil // else pgx would prepare all of them again, in two round trips more, as if they were to blame
			}
			return i, failed(steps[i:], err)
		}
	}
	return len(steps), nil
}

// failed names the statement that an error is about: the first of these, unless it is that one of them could not be prepared.
func failed(steps []step, err error) error {
	var unprepared pgx.ErrPreprocessingBatch
	if errors.As(err, &unprepared) {
		for i := range steps {
			if steps[i].query == unprepared.SQL() {
				return steps[i].failed(unprepared.Unwrap())
			}
		}
	}
	return steps[0].failed(steps[0].meaning(err))
}

// counted returns the step with its rows counted by the server, which fails before the COMMIT if their number is another: by a
// division by zero, an error that no statement of ours has otherwise.
func (s step) counted() step {
	if s.must != nil {
		s.query = "WITH changed AS (" + s.query + " RETURNING 1) SELECT 1 / CASE WHEN (SELECT count(*) FROM changed) = $" +
			strconv.Itoa(len(s.args)+1) + "::BIGINT THEN 1 ELSE 0 END"
		s.args, s.affected = append(slices.Clip(s.args), s.must.rows), nil
	}
	return s
}

// divisionByZero is its SQLSTATE.
const divisionByZero = "22012"

// miscounted says whether err is of a counted statement, and says that it has changed another number of rows.
func (s *step) miscounted(err error) bool {
	var answer *pgconn.PgError
	return s.must != nil && errors.As(err, &answer) && answer.Code == divisionByZero
}

// meaning returns what an error of a statement means.
func (s *step) meaning(err error) error {
	if s.miscounted(err) {
		return s.must.otherwise
	}
	return err
}

// lost says whether err is that others were first, and not that anything is wrong with the statement.
func (s *step) lost(err error) bool { return s.miscounted(err) || conflict(err) }

// read reads the answer to a statement.
func (s *step) read(results pgx.BatchResults) error {
	if s.row == nil {
		tag, err := results.Exec()
		if err != nil || s.affected == nil {
			return err
		}
		return s.affected(tag.RowsAffected())
	}
	rows, err := results.Query()
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := s.row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// serverTx is a transaction of a serverConn.
type serverTx struct {
	ctx  context.Context //nolint:containedctx // driver.Tx has no other way
	conn *serverConn
}

// Commit commits, with the statements that were to go with it.
func (t serverTx) Commit() error {
	c, conn := t.conn, t.conn.Conn.Conn()
	switch {
	case c.failed || conn.PgConn().TxStatus() == 'E': // a COMMIT would roll back, without an error
		_ = t.Rollback()
		return pgx.ErrTxCommitRollback
	case c.unbegun && len(c.last) == 0: // nothing was done
		c.unbegun = false
		return nil
	case conn.IsClosed():
		return notCommitted{driver.ErrBadConn}
	}
	_ = replicated(conn) // what was said before is not about this
	steps := append(c.before(), step{query: "COMMIT"})
	done, err := sendAll(t.ctx, conn, steps)
	if err == nil {
		return replicated(conn)
	}
	err = c.judge(t.ctx, err)
	// Where the connection is lost, who says so may be a pooler that has lost the server, after the COMMIT.
	if done < len(steps)-1 && !conn.IsClosed() {
		err = notCommitted{err}
	}
	_ = t.Rollback() // database/sql won't
	return err
}

// notCommitted is why a COMMIT was not sent, or the error of a statement that went with it: the server has skipped it then.
type notCommitted struct{ error }

// Unwrap returns the error.
func (e notCommitted) Unwrap() error { return e.error }

// Rollback rolls back.
func (t serverTx) Rollback() error {
	c, conn := t.conn, t.conn.Conn.Conn()
	c.unbegun, c.failed, c.last = false, false, nil
	if conn.IsClosed() || conn.PgConn().TxStatus() == idle {
		return nil
	}
	ctx, cancel := c.within(t.ctx)
	defer cancel()
	if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
		return errors.Join(err, c.Close()) // its state isn't known
	}
	return nil
}

// serverStmt is a prepared statement of a serverConn, which runs it: what has to be sent before comes first.
type serverStmt struct {
	driver.Stmt
	conn  *serverConn
	query string
}

// ExecContext runs the statement.
func (s serverStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, args)
}

// QueryContext runs the query.
func (s serverStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, args)
}
