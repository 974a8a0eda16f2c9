package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

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
