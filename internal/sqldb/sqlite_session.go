package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// fileSession is a [Session] with a SQLite file. It refuses all work after a lasting fault,
// recognizes faults in SQLite's answers, and looks after each COMMIT whether the file is still the
// one that the process has open: a commit to a file that was removed must not be answered with a
// receipt.
type fileSession struct {
	conn   *sql.Conn
	fault  *fault
	writes bool
	dirty  bool // its transaction has changed something
}

// Send implements [Session]. There is no way to a server to save, so each statement runs by itself.
func (s *fileSession) Send(ctx context.Context, statements []Statement) (done int, err error) {
	for i := range statements {
		if err := s.run(ctx, &statements[i]); err != nil {
			return i, s.judge(ctx, err)
		}
	}
	return len(statements), nil
}

// Close implements [Session].
func (s *fileSession) Close() { _ = s.conn.Close() }

// Discard implements [Session].
func (s *fileSession) Discard() { discard(s.conn) }

func (s *fileSession) run(ctx context.Context, one *Statement) error {
	if one.Query == rollback {
		// Also after a fault, and after ctx has ended: the next transaction has this connection.
		_, err := s.conn.ExecContext(context.WithoutCancel(ctx), rollback)
		return err
	}
	if err := s.fault.get(); err != nil {
		return err
	}
	switch {
	case one.Query == beginFile:
		return s.begin(ctx)
	case one.Query == commit:
		return s.commit(context.WithoutCancel(ctx)) // an interrupted COMMIT leaves its outcome open
	case one.row == nil:
		return s.exec(ctx, one)
	}
	return s.query(ctx, one)
}

func (s *fileSession) begin(ctx context.Context) error {
	began := time.Now()
	_, err := s.conn.ExecContext(ctx, beginFile)
	s.fault.waited(ctx, time.Since(began)) // all that it can wait for is the lock
	s.dirty = false
	return err
}

func (s *fileSession) exec(ctx context.Context, one *Statement) error {
	result, err := s.conn.ExecContext(ctx, one.Query, one.Args...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil || n > 0 {
		s.dirty = true
	}
	if err != nil || one.affected == nil {
		return err
	}
	return one.affected(n)
}

func (s *fileSession) query(ctx context.Context, one *Statement) (err error) {
	rows, err := s.conn.QueryContext(ctx, one.Query, one.Args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	if !strings.HasPrefix(strings.TrimLeft(one.Query, " \t\n"), "SELECT") {
		s.dirty = true
	}
	for rows.Next() {
		if err := one.row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// commit commits. A commit to a file that is not there any more is a fault, and no success.
func (s *fileSession) commit(ctx context.Context) error {
	if s.dirty {
		if err := s.stamp(ctx); err != nil {
			return err
		}
	}
	if _, err := s.conn.ExecContext(ctx, commit); err != nil || !s.dirty {
		return err
	}
	s.fault.written()
	return s.fault.look(ctx)
}

// stamp gives the transaction's commit its stamp, see stamps.
func (s *fileSession) stamp(ctx context.Context) error {
	var before int64
	if err := s.conn.QueryRowContext(ctx, "PRAGMA application_id").Scan(&before); err != nil {
		return fmt.Errorf("read the stamp of the last commit: %w", err)
	}
	if err := s.conn.Raw(func(c any) error { return execOnce(ctx, c, stampAfter(before)) }); err != nil {
		return fmt.Errorf("stamp the commit: %w", err)
	}
	return nil
}

// judge looks at an error, and keeps one by which nothing can be written, until something was.
func (s *fileSession) judge(ctx context.Context, err error) error {
	if s.writes {
		s.fault.unwritten(err)
	}
	return s.fault.judge(ctx, err)
}
