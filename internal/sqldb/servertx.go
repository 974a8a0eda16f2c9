package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/cockroach-go/v2/crdb"
	"github.com/jackc/pgx/v5/pgconn"
)

// What begins and ends a transaction on a server. cockroach-go sends the texts of the savepoint.
const (
	begin     = "BEGIN ISOLATION LEVEL SERIALIZABLE"
	commit    = "COMMIT"
	rollback  = "ROLLBACK"
	savepoint = "SAVEPOINT cockroach_restart"
	release   = "RELEASE SAVEPOINT cockroach_restart"
)

// serverTx is a transaction on a server. Statements that need no answer go together: the BEGIN with
// the first statements, and the COMMIT with the last ones. If all statements of a transaction are
// given to RunAtCommit, these are the round trips:
//
//	PostgreSQL                         BEGIN, statements, COMMIT
//	CockroachDB                        BEGIN, SAVEPOINT, statements, RELEASE, COMMIT
//	CockroachDB, if rows are counted   BEGIN, SAVEPOINT, statements ┃ RELEASE, COMMIT
type serverTx struct {
	conn       *sql.Conn
	counts     bool // the server checks by itself what Must says
	begin, end []statement
	last       []statement // goes with the commit
	begun      bool        // the server has been told to begin
	over       bool        // nothing is left to roll back
	failed     error       // the first error
}

// onServer runs a transaction with what begins and ends it. It rolls back unless attempt commits.
func (db *DB) onServer(ctx context.Context, begin, end []string, attempt func(*serverTx) error) error {
	conn, err := db.writer.Conn(ctx)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer func() { _ = conn.Close() }()
	tx := &serverTx{conn: conn, counts: db.engine == Postgres, begin: statements(begin...), end: statements(end...)}
	// After an error, a panic, and runtime.Goexit. After the commit, it does nothing.
	defer tx.rollback(ctx)
	return attempt(tx)
}

func statements(queries ...string) []statement {
	list := make([]statement, len(queries))
	for i, query := range queries {
		list[i] = statement{query: query}
	}
	return list
}

func (db *DB) postgresTx(ctx context.Context, fn func(*Tx) error) error {
	return db.onServer(ctx, []string{begin}, []string{commit}, func(tx *serverTx) error {
		if err := fn(&Tx{tx}); err != nil {
			return err
		}
		return db.commitError(ctx, tx.commit(ctx))
	})
}

// cockroachTx leaves retries to cockroach-go, which runs them inside one transaction, by a
// savepoint. CockroachDB then raises the priority of the transaction with every attempt. This is
// for CockroachDB alone: there, RELEASE SAVEPOINT commits, and the COMMIT after it changes nothing.
func (db *DB) cockroachTx(ctx context.Context, fn func(*Tx) error) error {
	const whileContextLives = 0
	return db.onServer(ctx, []string{begin, savepoint}, []string{release, commit}, func(tx *serverTx) error {
		err := crdb.ExecuteInTx(crdb.WithMaxRetries(ctx, whileContextLives), restartable{tx}, func() error { return fn(&Tx{tx}) })
		var released *crdb.AmbiguousCommitError // every error of RELEASE but conflicts
		if errors.As(err, &released) {
			return db.commitError(ctx, released.Unwrap())
		}
		return err
	})
}

// restartable is a serverTx that cockroach-go drives.
type restartable struct{ *serverTx }

// Exec implements [crdb.Tx].
func (r restartable) Exec(ctx context.Context, statement string, _ ...any) error {
	switch statement {
	case savepoint: // it goes with the BEGIN
		return nil
	case release:
		return r.commit(ctx)
	}
	return r.restart(ctx, statement)
}

// Commit implements [crdb.Tx]. The COMMIT went with the RELEASE.
func (r restartable) Commit(context.Context) error { return nil }

// Rollback implements [crdb.Tx].
func (r restartable) Rollback(ctx context.Context) error {
	r.rollback(ctx)
	return nil
}

// restart rolls back to the savepoint, unless the server has not heard of the transaction yet.
func (t *serverTx) restart(ctx context.Context, statement string) error {
	t.failed, t.last = nil, nil
	if !t.begun {
		return nil
	}
	return t.run(ctx, statements(statement))
}

func (t *serverTx) run(ctx context.Context, list []statement) error {
	_, err := t.send(ctx, list)
	return err
}

func (t *serverTx) runAtCommit(ctx context.Context, list []statement) error {
	if !t.counts && slices.ContainsFunc(list, func(s statement) bool { return s.must != nil }) {
		return t.run(ctx, list)
	}
	for i := range list {
		t.last = append(t.last, list[i].counted())
	}
	return nil
}

// send runs statements, after those that must come first. It returns how many were left at an
// error. From then on the transaction runs no statements: if the BEGIN has failed, they would be
// done outside of it, and a COMMIT would roll back without an error.
func (t *serverTx) send(ctx context.Context, list []statement) (left int, err error) {
	if t.failed != nil {
		return len(list), t.refused()
	}
	if t.begun {
		list = slices.Concat(t.last, list)
	} else {
		list = slices.Concat(t.begin, t.last, list)
	}
	t.begun, t.last = true, nil
	done, err := runTogether(ctx, t.conn, list)
	t.failed = err
	return len(list) - done, err
}

// commit ends the transaction.
func (t *serverTx) commit(ctx context.Context) error {
	switch {
	case t.failed != nil:
		return t.refused()
	case !t.begun && len(t.last) == 0: // nothing was done
		return nil
	}
	left, err := t.send(ctx, t.end)
	// A COMMIT that the server answers by an error has rolled back.
	t.over = err == nil || left == 1 && errors.As(err, new(*pgconn.PgError))
	return err
}

// refused is why the transaction runs no more statements.
func (t *serverTx) refused() error { return notCommitted{fmt.Errorf("%w: %w", errFailed, t.failed)} }

// rollback rolls back unless the transaction is over. If ctx has ended, the driver gives the
// connection up, and the server rolls back by itself.
func (t *serverTx) rollback(ctx context.Context) {
	if t.begun && !t.over {
		t.over = true
		_, _ = t.conn.ExecContext(ctx, rollback)
	}
}
