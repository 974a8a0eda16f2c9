package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
)

// Session is one connection to a database, and the door between this package and an engine. All
// work goes through it, except migrations and [DB.Reader]. It has two back ends: fileSession for
// SQLite, and serverSession for PostgreSQL and CockroachDB. A session is for one goroutine.
type Session interface {
	// Send runs statements in order, a server's in one round trip, and passes the answer to each to
	// the function that the statement has for it. It returns how many succeeded. After one that
	// fails, the rest do not run.
	//
	// BEGIN, COMMIT and ROLLBACK are statements like any others. If a COMMIT among them was
	// certainly not done, the error is a notCommitted.
	Send(ctx context.Context, statements []Statement) (done int, err error)
	// Close ends the use of the connection, and keeps it for the next one.
	Close()
	// Discard closes the connection, and so rolls back its transaction.
	Discard()
}

// Statement is one statement, and what to do with its answer.
type Statement struct {
	Query string // with $1, $2, … for the arguments
	Args  []any

	what     string              // the start of its errors
	row      func(Row) error     // gets each row; nil: it is not a query
	affected func(n int64) error // gets the number of changed rows; nil: the number does not matter
	must     *must
}

// wrapKey is the context key of Wrap's function.
type wrapKey struct{}

// Wrap returns a context that gives [Open] a hook: the database passes each session through wrap
// before it is used. A test sees every statement of a program this way, whichever package sends it,
// and can make each of them fail (internal/testenv). net/http/httptrace does the same for requests.
// No program uses it.
func Wrap(ctx context.Context, wrap func(Engine, Session) Session) context.Context {
	return context.WithValue(ctx, wrapKey{}, wrap)
}

// session takes a connection from a pool. It waits for a free one until ctx ends.
func (db *DB) session(ctx context.Context, pool *sql.DB) (Session, error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, err
	}
	var s Session = serverSession{conn}
	if db.engine == SQLite {
		s = &fileSession{conn: conn, fault: db.fault, writes: pool == db.writer}
	}
	if db.wrap != nil {
		s = db.wrap(db.engine, s)
	}
	return s, nil
}

// alone runs statements outside a transaction. Like database/sql, it takes another connection if
// one is dead before anything is sent.
func (db *DB) alone(ctx context.Context, pool *sql.DB, statements []Statement) error {
	const most = 3
	for attempt := 1; ; attempt++ {
		session, err := db.session(ctx, pool)
		if err != nil {
			return err
		}
		_, err = send(ctx, session, statements)
		session.Close()
		if !errors.Is(err, driver.ErrBadConn) || attempt == most {
			return err
		}
	}
}

// send runs statements. An error begins with the name of the statement that it is about.
func send(ctx context.Context, session Session, statements []Statement) (done int, err error) {
	done, err = session.Send(ctx, statements)
	if err != nil {
		err = about(statements[min(done, len(statements)-1):], err)
	}
	return done, err
}

// discard closes a connection of a pool.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // it is what makes database/sql close it
}
