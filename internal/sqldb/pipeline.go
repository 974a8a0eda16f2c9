package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
)

// Pipeline is statements that are run one after the other, and none after one that fails. PostgreSQL gets them in one round
// trip: what they cost is the work, and not the way there and back for each. The zero value is empty. It is for one use.
type Pipeline struct {
	steps  []step
	commit bool // they go with the COMMIT
}

// step is a statement of a pipeline.
type step struct {
	what     string // for the error
	query    string
	args     []any
	row      func(Row) error
	affected func(int64) error
	must     *must
}

// must is what a statement has to change.
type must struct {
	rows      int64
	otherwise error
}

// Row is a row of an answer, of which each column is read once. What []byte is read is the reader's own. It takes what
// [sql.Rows.Scan] takes for the columns that we have, but for sql.RawBytes.
type Row interface {
	Scan(dest ...any) error
}

// Query adds a query. Each row of its answer is given to row, whose error ends the pipeline. Errors begin with what, as in
// "load keys".
func (p *Pipeline) Query(what, query string, args []any, row func(Row) error) {
	p.steps = append(p.steps, step{what: what, query: query, args: args, row: row})
}

// Exec adds a statement. The number of rows that it has changed is given to affected, unless that is nil.
func (p *Pipeline) Exec(what, query string, args []any, affected func(n int64) error) {
	p.steps = append(p.steps, step{what: what, query: query, args: args, affected: affected})
}

// Must adds a statement that changes so many rows: the error is otherwise if it changes another number. Its text may have no
// parameters but those in args, and no RETURNING.
func (p *Pipeline) Must(what, query string, args []any, rows int64, otherwise error) {
	p.Exec(what, query, args, func(n int64) error {
		if n != rows {
			return otherwise
		}
		return nil
	})
	p.steps[len(p.steps)-1].must = &must{rows, otherwise}
}

// Statements are the texts of the statements.
func (p *Pipeline) Statements() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range p.steps {
			if !yield(p.steps[i].query) {
				return
			}
		}
	}
}

// Runner is where statements are run: a transaction (*sql.Tx), or a pool (*sql.DB).
type Runner interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Run runs the statements, and returns the first error.
//
// What was read before an error is not to be used; by then some of the functions may have been called. In a pool the statements
// must only read: each sees the database as it then is, there is no transaction around them.
func (db *DB) Run(ctx context.Context, on Runner, p *Pipeline) error {
	switch {
	case len(p.steps) == 0:
		return nil
	case db.engine == Postgres:
		_, err := on.ExecContext(ctx, "", p) // see serverConn
		return err
	}
	for i := range p.steps {
		if err := p.steps[i].run(ctx, on); err != nil {
			return p.steps[i].failed(err)
		}
	}
	return nil
}

// RunAtCommit runs the last statements of a transaction that [DB.InTx] runs: PostgreSQL gets them with the COMMIT, in one round
// trip, and InTx returns their errors. So they have no functions that look at what comes of them, but for what [Pipeline.Must]
// says, and nothing may follow them that depends on their success.
func (db *DB) RunAtCommit(ctx context.Context, tx *sql.Tx, p *Pipeline) error {
	for i := range p.steps {
		s := &p.steps[i]
		if s.row != nil || s.affected != nil && s.must == nil {
			return s.failed(errors.New("nobody can look at its result before the COMMIT"))
		}
	}
	p.commit = true
	return db.Run(ctx, tx, p)
}

func (s *step) failed(err error) error {
	if s.what == "" {
		return err
	}
	return fmt.Errorf("%s: %w", s.what, err)
}

// run runs one statement by itself.
func (s *step) run(ctx context.Context, on Runner) (err error) {
	if s.row == nil {
		result, err := on.ExecContext(ctx, s.query, s.args...)
		if err != nil || s.affected == nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		return s.affected(n)
	}
	rows, err := on.QueryContext(ctx, s.query, s.args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := s.row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
