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

// What begins and ends a transaction. SQLite's takes the write lock at once: one that began by
// reading and then wants to write gets SQLITE_BUSY_SNAPSHOT if another wrote in between.
// cockroach-go sends the texts of the savepoint.
const (
	beginFile   = "BEGIN IMMEDIATE"
	beginServer = "BEGIN ISOLATION LEVEL SERIALIZABLE"
	commit      = "COMMIT"
	rollback    = "ROLLBACK"
	savepoint   = "SAVEPOINT cockroach_restart"
	release     = "RELEASE SAVEPOINT cockroach_restart"
)

// transaction is a transaction on any engine. Statements that need no answer go together: the BEGIN
// with the first statements, and on a server the COMMIT with the last ones. If all statements of a
// transaction are given to RunAtCommit, these are the round trips:
//
//	PostgreSQL                         BEGIN, statements, COMMIT
//	CockroachDB                        BEGIN, SAVEPOINT, statements, RELEASE, COMMIT
//	CockroachDB, if rows are counted   BEGIN, SAVEPOINT, statements ┃ RELEASE, COMMIT
type transaction struct {
	session    Session
	engine     Engine
	begin, end []Statement
	last       []Statement // goes with the commit
	begun      bool        // the database has been told to begin
	over       bool        // nothing is left to roll back
	failed     error       // the first error
}

// inSession runs a transaction with what begins and ends it. It rolls back unless attempt commits.
func (db *DB) inSession(ctx context.Context, begin, end []string, attempt func(*transaction) error) error {
	session, err := db.session(ctx, db.writer)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer session.Close()
	tx := &transaction{session: session, engine: db.engine, begin: statements(begin...), end: statements(end...)}
	// After an error, a panic, and runtime.Goexit. After the commit, it does nothing.
	defer tx.rollback(ctx)
	return attempt(tx)
}

func statements(queries ...string) []Statement {
	list := make([]Statement, len(queries))
	for i, query := range queries {
		list[i] = Statement{Query: query}
	}
	return list
}

// plainTx runs a transaction on SQLite or PostgreSQL once.
func (db *DB) plainTx(ctx context.Context, fn func(*Tx) error) error {
	begin := beginServer
	if db.engine == SQLite {
		begin = beginFile
	}
	return db.inSession(ctx, []string{begin}, []string{commit}, func(tx *transaction) error {
		if err := fn(&Tx{tx}); err != nil {
			return err
		}
		return db.commitError(tx.commit(ctx))
	})
}

// cockroachTx leaves retries to cockroach-go, which runs them inside one transaction, by a
// savepoint. CockroachDB then raises the priority of the transaction with every attempt. This is
// for CockroachDB alone: there, RELEASE SAVEPOINT commits, and the COMMIT after it changes nothing.
func (db *DB) cockroachTx(ctx context.Context, fn func(*Tx) error) error {
	const whileContextLives = 0
	return db.inSession(ctx, []string{beginServer, savepoint}, []string{release, commit}, func(tx *transaction) error {
		err := crdb.ExecuteInTx(crdb.WithMaxRetries(ctx, whileContextLives), restartable{tx}, func() error { return fn(&Tx{tx}) })
		var released *crdb.AmbiguousCommitError // every error of RELEASE but conflicts
		if errors.As(err, &released) {
			return db.commitError(released.Unwrap())
		}
		return err
	})
}

// restartable is a transaction that cockroach-go drives.
type restartable struct{ *transaction }

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
func (t *transaction) restart(ctx context.Context, statement string) error {
	t.failed, t.last = nil, nil
	if !t.begun {
		return nil
	}
	return t.run(ctx, statements(statement))
}

func (t *transaction) run(ctx context.Context, list []Statement) error {
	if len(list) == 0 {
		return nil
	}
	_, err := t.send(ctx, list)
	return err
}

// runAtCommit leaves statements to the commit, unless that saves no round trip (SQLite), or the
// engine can't count rows by itself (CockroachDB).
func (t *transaction) runAtCommit(ctx context.Context, list []Statement) error {
	counts := slices.ContainsFunc(list, func(s Statement) bool { return s.must != nil })
	if t.engine == SQLite || t.engine == Cockroach && counts {
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
func (t *transaction) send(ctx context.Context, list []Statement) (left int, err error) {
	if t.failed != nil {
		return len(list), t.refused()
	}
	if t.begun {
		list = slices.Concat(t.last, list)
	} else {
		list = slices.Concat(t.begin, t.last, list)
	}
	t.begun, t.last = true, nil
	done, err := send(ctx, t.session, list)
	t.failed = err
	return len(list) - done, err
}

// commit ends the transaction.
func (t *transaction) commit(ctx context.Context) error {
	switch {
	case t.failed != nil:
		return t.refused()
	case !t.begun && len(t.last) == 0: // nothing was done
		return nil
	}
	left, err := t.send(ctx, t.end)
	// A COMMIT that a server answers by an error has rolled back.
	t.over = err == nil || left == 1 && errors.As(err, new(*pgconn.PgError))
	return err
}

// errFailed is why a transaction is not committed if its function has ignored an error.
var errFailed = errors.New("a statement of the transaction has failed, so it is rolled back")

// refused is why the transaction runs no more statements.
func (t *transaction) refused() error { return notCommitted{fmt.Errorf("%w: %w", errFailed, t.failed)} }

// rollback rolls back unless the transaction is over. If ctx has ended, the driver gives a server's
// connection up, and the server rolls back by itself.
func (t *transaction) rollback(ctx context.Context) {
	if t.begun && !t.over {
		t.over = true
		_, _ = t.session.Send(ctx, statements(rollback))
	}
}

// Tx is a transaction that [DB.InTx] runs. It is for one goroutine.
type Tx struct {
	on *transaction
}

// Run runs statements, and returns the first error. After an error, discard what was read: some of
// the functions may have been called. They must not use tx: its connection is still being read, and
// they would wait for ever.
func (tx *Tx) Run(ctx context.Context, p *Pipeline) error {
	if len(p.statements) == 0 {
		return nil
	}
	return tx.on.run(ctx, p.statements)
}

// RunAtCommit runs the last statements of a transaction. A server gets them together with the
// COMMIT if it can check [Pipeline.Must] by itself; InTx then returns their errors. They have no
// functions that look at their results, and nothing that follows may depend on their success.
func (tx *Tx) RunAtCommit(ctx context.Context, p *Pipeline) error {
	for i := range p.statements {
		s := &p.statements[i]
		if s.row != nil || s.affected != nil && s.must == nil {
			return s.failed(errors.New("its result can't be looked at before the COMMIT"))
		}
	}
	return tx.on.runAtCommit(ctx, p.statements)
}

// Exec runs a statement, and returns how many rows it has changed.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (changed int64, err error) {
	return changedBy(query, args, func(one Statement) error { return tx.on.run(ctx, []Statement{one}) })
}

// QueryRow returns the first row of a query's answer. Scan runs the query. If the answer has no
// rows, the error is [sql.ErrNoRows].
func (tx *Tx) QueryRow(ctx context.Context, query string, args ...any) Row {
	return firstOf(query, args, func(one Statement) error { return tx.on.run(ctx, []Statement{one}) })
}

func changedBy(query string, args []any, run func(Statement) error) (changed int64, err error) {
	err = run(Statement{Query: query, Args: args, affected: func(n int64) error {
		changed = n
		return nil
	}})
	return changed, err
}

func firstOf(query string, args []any, run func(Statement) error) Row {
	return firstRow(func(dest []any) error {
		found := false
		err := run(Statement{Query: query, Args: args, row: func(row Row) error {
			if found {
				return nil
			}
			found = true
			return row.Scan(dest...)
		}})
		if err == nil && !found {
			return sql.ErrNoRows
		}
		return err
	})
}

type firstRow func(dest []any) error

// Scan implements [Row].
func (scan firstRow) Scan(dest ...any) error { return scan(dest) }

// InTx runs fn in a SERIALIZABLE transaction and commits it. If the transaction loses a race
// against another one, InTx runs it again from its start while ctx lives. So fn may run several
// times: it starts from nothing each time, changes nothing but the database, and wraps errors with
// %w so that InTx sees the loss. An error or a panic of fn rolls back.
//
// If the error is nil, the transaction is committed. If it is ErrUnknownOutcome, the transaction
// may be committed: InTx never retries this, because only the caller can find out whether its
// change is there. After any other error, the transaction is not committed.
func (db *DB) InTx(ctx context.Context, fn func(*Tx) error) error {
	if err := db.Fault(); err != nil {
		return err
	}
	work := func(tx *Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		// The last chance to give up with a known outcome: a cancelled COMMIT leaves it unknown.
		return ctx.Err()
	}
	if db.engine == Cockroach {
		return db.cockroachTx(ctx, work)
	}
	return again(ctx, func() error { return db.plainTx(ctx, work) })
}

// Read runs read, which reads outside of InTx. If CockroachDB ends it by a conflict, Read runs it
// again from its start while ctx lives, so read starts from nothing each time. The server itself
// repeats a query only until it has sent a part of the answer: some 16 KiB before version 24.1 and
// 512 KiB since. So concurrent writers may end a long answer. On the other engines, a reader has no
// rivals.
func (db *DB) Read(ctx context.Context, read func() error) error {
	if db.engine != Cockroach {
		return read()
	}
	return again(ctx, read)
}

// commitError tells failed commits from those whose outcome is unknown.
func (db *DB) commitError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(notCommitted)):
		return err
	case db.engine.unknownOutcome(err):
		return fmt.Errorf("commit: %w: %w", ErrUnknownOutcome, err)
	}
	return fmt.Errorf("commit: %w", err)
}
