package sqldb

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Tx is a transaction that [DB.InTx] runs. It is for one goroutine.
type Tx struct {
	on executor
}

// executor runs the statements of a transaction the way its engine does it best.
type executor interface {
	// run runs statements, and returns the first error.
	run(ctx context.Context, statements []statement) error
	// runAtCommit may leave statements, and their errors, to the commit.
	runAtCommit(ctx context.Context, statements []statement) error
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
	return changedBy(query, args, func(one statement) error { return tx.on.run(ctx, []statement{one}) })
}

// QueryRow returns the first row of a query's answer. Scan runs the query. If the answer has no
// rows, the error is [sql.ErrNoRows].
func (tx *Tx) QueryRow(ctx context.Context, query string, args ...any) Row {
	return firstOf(query, args, func(one statement) error { return tx.on.run(ctx, []statement{one}) })
}

func changedBy(query string, args []any, run func(statement) error) (changed int64, err error) {
	err = run(statement{query: query, args: args, affected: func(n int64) error {
		changed = n
		return nil
	}})
	return changed, err
}

func firstOf(query string, args []any, run func(statement) error) Row {
	return firstRow(func(dest []any) error {
		found := false
		err := run(statement{query: query, args: args, row: func(row Row) error {
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
	switch db.engine {
	case Cockroach:
		return db.cockroachTx(ctx, work)
	case Postgres:
		return again(ctx, func() error { return db.postgresTx(ctx, work) })
	default:
		return again(ctx, func() error { return db.fileTx(ctx, work) })
	}
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

// fileTx runs a transaction on SQLite. It takes the write lock first, see openFileWriter.
func (db *DB) fileTx(ctx context.Context, fn func(*Tx) error) error {
	tx, err := db.writer.BeginTx(ctx, serializable())
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	// After an error, a panic, and runtime.Goexit. After the commit, it does nothing.
	defer func() { _ = tx.Rollback() }()

	f := &fileTx{tx: tx}
	if err := fn(&Tx{f}); err != nil {
		return err
	}
	if f.failed != nil {
		return fmt.Errorf("%w: %w", errFailed, f.failed)
	}
	return db.commitError(ctx, tx.Commit())
}

// errFailed is why a transaction is not committed if its function has ignored an error.
var errFailed = errors.New("a statement of the transaction has failed, so it is rolled back")

// fileTx is a transaction on SQLite, where there is no way to a server to save.
type fileTx struct {
	tx     *sql.Tx
	failed error // the first error
}

func (f *fileTx) run(ctx context.Context, statements []statement) error {
	err := runEach(ctx, f.tx, statements)
	if f.failed == nil {
		f.failed = err
	}
	return err
}

func (f *fileTx) runAtCommit(ctx context.Context, statements []statement) error {
	return f.run(ctx, statements)
}

// commitError tells failed commits from those whose outcome is unknown.
func (db *DB) commitError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrTxDone):
		// database/sql has rolled back, because ctx ended.
		return fmt.Errorf("commit: %w", cmp.Or(ctx.Err(), err))
	case errors.As(err, new(notCommitted)):
		return err
	case db.engine.unknownOutcome(err):
		return fmt.Errorf("commit: %w: %w", ErrUnknownOutcome, err)
	}
	return fmt.Errorf("commit: %w", err)
}

func serializable() *sql.TxOptions { return &sql.TxOptions{Isolation: sql.LevelSerializable} }
