package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// serverSession is a [Session] with a server. A round trip is a large part of what a short
// statement costs there, so statements go together, by pgx itself. database/sql only keeps the pool
// of connections, which goose needs.
type serverSession struct{ conn *sql.Conn }

// batcher is a connection of the pool.
type batcher interface {
	// batch sends statements together, and passes the answer to each to read, with its index. It
	// returns how many statements succeeded. After one that fails, the server skips the rest.
	batch(ctx context.Context, batch *pgx.Batch, read func(i int, results pgx.BatchResults) error) (done int, err error)
}

// Send implements [Session].
func (s serverSession) Send(ctx context.Context, statements []Statement) (done int, err error) {
	if len(statements) == 1 && statements[0].Query == rollback {
		_, err := s.conn.ExecContext(ctx, rollback) // without preparing it
		return 0, err
	}
	batch := pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, 0, len(statements))}
	for i := range statements {
		batch.Queue(statements[i].Query, statements[i].Args...)
	}
	err = s.conn.Raw(func(c any) (err error) {
		b, ok := c.(batcher)
		if !ok {
			return fmt.Errorf("a server's connection is a %T", c)
		}
		done, err = b.batch(ctx, &batch, func(i int, results pgx.BatchResults) error { return statements[i].read(results) })
		return err
	})
	return done, err
}

// Close implements [Session].
func (s serverSession) Close() { _ = s.conn.Close() } // a dead connection is given up

// Discard implements [Session].
func (s serverSession) Discard() { discard(s.conn) }

// batch implements [batcher].
func (s *serverConn) batch(ctx context.Context, batch *pgx.Batch, read func(int, pgx.BatchResults) error) (done int, err error) {
	conn := s.Conn.Conn()
	commits := commitAmong(batch)
	if conn.IsClosed() {
		if commits >= 0 {
			return 0, notCommitted{driver.ErrBadConn}
		}
		return 0, driver.ErrBadConn
	}
	if commits < 0 { // a COMMIT has no limit, see limits
		var cancel context.CancelFunc
		ctx, cancel = s.within(ctx)
		defer cancel()
	}
	_ = replicated(conn) // earlier notices are not about this batch
	if done, err = sendBatch(ctx, conn, batch, read); err == nil {
		return done, replicated(conn)
	}
	err = s.judge(ctx, err)
	// A lost connection leaves the outcome open: a pooler may report that it has lost the server
	// after the COMMIT.
	if done < commits && !conn.IsClosed() {
		err = notCommitted{err}
	}
	return done, err
}

// commitAmong returns the index of the statement that commits, -1 if there is none.
func commitAmong(batch *pgx.Batch) int {
	return slices.IndexFunc(batch.QueuedQueries, func(q *pgx.QueuedQuery) bool { return q.SQL == commit || q.SQL == release })
}

// notCommitted says that a COMMIT was not sent, or that the server has skipped it.
type notCommitted struct{ error }

// Unwrap returns the error.
func (e notCommitted) Unwrap() error { return e.error }

func sendBatch(ctx context.Context, conn *pgx.Conn, batch *pgx.Batch, read func(int, pgx.BatchResults) error) (done int, err error) {
	n := batch.Len()
	results := conn.SendBatch(ctx, batch)
	defer func() {
		if closed := results.Close(); err == nil { // otherwise it is the same error
			err = closed
		}
	}()
	for i := range n {
		if err := read(i, results); err != nil {
			if conflict(err) || miscounted(err) {
				// Otherwise pgx blames the statements, and prepares all of them again in two more
				// round trips.
				batch.QueuedQueries = nil
			}
			return i, err
		}
	}
	return n, nil
}

// read reads the answer to a statement.
func (s *Statement) read(results pgx.BatchResults) error {
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

// sessions are those of a pool. If one of them finds that its server takes no writes, or stops,
// then the others lead to the same server, and none of them is used again.
type sessions struct{ era atomic.Int64 }

// end has all sessions of an era replaced.
func (s *sessions) end(era int64) { s.era.CompareAndSwap(era, era+1) }

// serverConnector makes sessions.
type serverConnector struct {
	driver.Connector

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
	one := &serverConn{Conn: inner, all: c.sessions, era: era, answer: c.limits.answer}
	if c.told != "" {
		return &pooledConn{one, c.told}, nil
	}
	return one, nil
}

// serverConn is one of them, as database/sql knows it.
type serverConn struct {
	*stdlib.Conn
	all    *sessions
	era    int64
	answer time.Duration // see limits
}

// IsValid implements [driver.Validator].
func (s *serverConn) IsValid() bool { return s.era == s.all.era.Load() && !s.Conn.Conn().IsClosed() }

// ResetSession implements [driver.SessionResetter].
func (s *serverConn) ResetSession(ctx context.Context) error {
	if s.era != s.all.era.Load() {
		return driver.ErrBadConn
	}
	within, cancel := context.WithTimeout(ctx, dialTimeout) // it pings after an idle time
	defer cancel()
	err := s.Conn.ResetSession(within)
	if err != nil && ctx.Err() == nil {
		s.all.end(s.era)
	}
	return err
}

// within returns a context that limits how long an answer may take.
func (s *serverConn) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.answer == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.answer, errNoAnswer)
}

// inTx says whether the server is in a transaction.
func (s *serverConn) inTx() bool {
	const idle = 'I'
	return s.Conn.Conn().PgConn().TxStatus() != idle
}

// judge looks at the error of a statement. If the server takes no writes, stops or is gone, or if
// prepared statements are of no use any more, all sessions to it are replaced. judge never tries
// again: another server may lack what was read from this one.
func (s *serverConn) judge(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
			return fmt.Errorf("%w: %w", cause, err)
		}
	case elsewhere(err), s.Conn.Conn().IsClosed():
		s.all.end(s.era)
	}
	return err
}

// unreplicated is the key of a note about a connection's COMMIT.
const unreplicated = "unreplicated"

// notice looks at a server's notices, for one that its wait for a standby was cancelled. The answer
// to the COMMIT is then that the transaction is committed, which is true on this server alone. The
// routine's name is the same in all languages.
func notice(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == "SyncRepWaitForLSN" {
		conn.CustomData()[unreplicated] = true
	}
}

// replicated returns [errUnreplicated] if the wait for a standby was cancelled since the last call.
func replicated(conn *pgx.Conn) error {
	data := conn.PgConn().CustomData()
	if _, is := data[unreplicated]; !is {
		return nil
	}
	delete(data, unreplicated)
	return errUnreplicated
}
