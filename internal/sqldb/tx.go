package sqldb

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/cockroachdb/cockroach-go/v2/crdb"
)

// InTx runs fn in a SERIALIZABLE transaction and commits it. A transaction that lost a race against another one is run
// again, from its start and while ctx lives, so fn may run several times: it starts from nothing each time, changes
// nothing but the database, and wraps errors with %w so that the loss is seen. An error or a panic of fn rolls back.
//
// A nil error means that the transaction is committed; any other that it is not, but for ErrUnknownOutcome, which is
// never retried here, because only the caller can find out whether its change is there.
func (db *DB) InTx(ctx context.Context, fn func(*sql.Tx) error) error {
	if err := db.Fault(); err != nil {
		return err
	}
	work := func(tx *sql.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		// The last moment to give up for sure. A cancellation of the COMMIT would leave its outcome unknown.
		return ctx.Err()
	}
	if db.engine == Cockroach {
		return db.cockroachTx(ctx, work)
	}
	return again(ctx, func() error { return db.tryTx(ctx, work) })
}

// Read runs read, which reads outside of InTx, again where CockroachDB ends it by a conflict, from its start and while ctx lives: it
// starts from nothing each time. The server repeats by itself only what it has not begun to answer, some 16 KiB before version
// 24.1 and 512 KiB since, so a long answer may break off because of those who write beside it. With the other engines, nobody who
// only reads has a rival.
func (db *DB) Read(ctx context.Context, read func() error) error {
	if db.engine != Cockroach {
		return read()
	}
	return again(ctx, read)
}

// tryTx runs one transaction. With SQLite it begins by taking the write lock, see openFileWriter.
func (db *DB) tryTx(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := db.writer.BeginTx(ctx, serializable())
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	// For an error, a panic, and runtime.Goexit. After the commit it does nothing.
	defer func() { _ = tx.Rollback() }()

	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return db.commitError(ctx, err)
	}
	return nil
}

// cockroachTx leaves retrying to cockroach-go, which does it inside one transaction by savepoints: CockroachDB then
// raises the priority of the transaction with every attempt. This is for CockroachDB alone: ExecuteTx takes RELEASE
// SAVEPOINT for the commit and drops the error of the real one, where PostgreSQL reports serialization failures.
func (db *DB) cockroachTx(ctx context.Context, fn func(*sql.Tx) error) error {
	const whileContextLives = 0
	err := crdb.ExecuteTx(crdb.WithMaxRetries(ctx, whileContextLives), db.writer, serializable(), fn)
	var release *crdb.AmbiguousCommitError // every error of RELEASE but a conflict, definite or not
	if errors.As(err, &release) {
		return db.commitError(ctx, release.Unwrap())
	}
	return err
}

// commitError tells apart the commits that failed from those of which nobody knows.
func (db *DB) commitError(ctx context.Context, err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		// database/sql had rolled back already, because ctx ended.
		return fmt.Errorf("commit: %w", cmp.Or(ctx.Err(), err))
	}
	if errors.As(err, new(notCommitted)) {
		return err
	}
	if db.engine.unknownOutcome(err) {
		return fmt.Errorf("commit: %w: %w", ErrUnknownOutcome, err)
	}
	return fmt.Errorf("commit: %w", err)
}

func serializable() *sql.TxOptions { return &sql.TxOptions{Isolation: sql.LevelSerializable} }
