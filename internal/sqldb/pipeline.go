package sqldb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Pipeline is a list of statements that run in order. If one of them fails, the later ones do not
// run. A server gets all of them in one round trip. The zero value is empty. A pipeline is for one
// use.
type Pipeline struct {
	statements []Statement
}

// must says how many rows a statement must change.
type must struct {
	rows      int64
	otherwise error
}

// Row is a row of an answer. Each column can be read once, and the reader owns the []byte that it
// reads. Scan accepts the types that [sql.Rows.Scan] accepts, except sql.RawBytes.
type Row interface {
	Scan(dest ...any) error
}

// Query adds a query. The pipeline passes each row of the answer to row, and ends if row returns an
// error. Errors begin with what, for example "load keys".
func (p *Pipeline) Query(what, query string, args []any, row func(Row) error) {
	p.statements = append(p.statements, Statement{what: what, Query: query, Args: args, row: row})
}

// Exec adds a statement. If affected is not nil, the pipeline passes it the number of changed rows.
func (p *Pipeline) Exec(what, query string, args []any, affected func(n int64) error) {
	p.statements = append(p.statements, Statement{what: what, Query: query, Args: args, affected: affected})
}

// Must adds a statement that must change this number of rows. If it changes another number, the
// error is otherwise. The query has no parameters except args, and no RETURNING.
func (p *Pipeline) Must(what, query string, args []any, rows int64, otherwise error) {
	p.Exec(what, query, args, func(n int64) error {
		if n != rows {
			return otherwise
		}
		return nil
	})
	p.statements[len(p.statements)-1].must = &must{rows, otherwise}
}

// Run runs statements that only read, outside a transaction, and returns the first error. Each
// statement sees the database as it is at that moment. After an error, discard what was read: some
// of the functions may have been called.
func (db *DB) Run(ctx context.Context, p *Pipeline) error {
	if len(p.statements) == 0 {
		return nil
	}
	return db.alone(ctx, db.reader, p.statements)
}

// Query runs a query outside a transaction, and passes each row of its answer to row. It ends if
// row returns an error.
func (db *DB) Query(ctx context.Context, query string, args []any, row func(Row) error) error {
	return db.alone(ctx, db.reader, []Statement{{Query: query, Args: args, row: row}})
}

// QueryRow is [Tx.QueryRow] outside a transaction.
func (db *DB) QueryRow(ctx context.Context, query string, args ...any) Row {
	return firstOf(query, args, func(one Statement) error { return db.alone(ctx, db.reader, []Statement{one}) })
}

// Exec is [Tx.Exec] outside a transaction, for a statement that may run twice: it is repeated when
// the driver believes of a broken connection that nothing was sent, which is not always true.
func (db *DB) Exec(ctx context.Context, query string, args ...any) (changed int64, err error) {
	return changedBy(query, args, func(one Statement) error { return db.alone(ctx, db.writer, []Statement{one}) })
}

func (s *Statement) failed(err error) error {
	if s.what == "" {
		return err
	}
	return fmt.Errorf("%s: %w", s.what, err)
}

// about names the statement that an error is about: the first of these, or the one that could not
// be prepared.
func about(statements []Statement, err error) error {
	s := &statements[0]
	var unprepared pgx.ErrPreprocessingBatch
	if errors.As(err, &unprepared) {
		for i := range statements {
			if statements[i].Query == unprepared.SQL() {
				s = &statements[i]
			}
		}
	}
	if s.must != nil && miscounted(err) {
		return notCommitted{s.failed(s.must.otherwise)}
	}
	return s.failed(err)
}

// mustChange creates a function of PostgreSQL by which a statement that goes with the COMMIT checks
// the number of changed rows: if the number is wrong, the function fails, and the server skips the
// COMMIT. [DB.Migrate] creates it before it applies migrations, and if it is missing. It does
// neither if there are no migrations to apply and the function exists. So a later change of the
// function must come with a migration.
const mustChange = `CREATE OR REPLACE FUNCTION omi_must_change(wanted BIGINT, changed BIGINT) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
	IF changed <> wanted THEN
		RAISE EXCEPTION USING ERRCODE = '` + otherCount + `', MESSAGE = format('%s rows are changed, not %s', changed, wanted);
	END IF;
	RETURN true;
END $$`

// canCheckRows says whether the function exists: a backup of the tables alone lacks it. It returns
// [ErrURL] if this role may not call it.
func (db *DB) canCheckRows(ctx context.Context) (exists bool, err error) {
	if db.engine != Postgres {
		return true, nil
	}
	const query = `SELECT f IS NOT NULL, coalesce(has_function_privilege(f, 'EXECUTE'), true)
		FROM (SELECT to_regprocedure('omi_must_change(bigint, bigint)')::oid AS f) AS one`
	var allowed bool
	if err := db.reader.QueryRowContext(ctx, query).Scan(&exists, &allowed); err != nil {
		return false, fmt.Errorf("look for the function omi_must_change: %w", err)
	}
	if !allowed {
		return false, urlError("its role may not call the function omi_must_change: grant it EXECUTE on that (deploy/sql/registry.sql)")
	}
	return exists, nil
}

// otherCount is the SQLSTATE of that failure. Its class is neither the standard's nor PostgreSQL's.
const otherCount = "OMI01"

// counted returns a statement that checks by itself how many rows it changes.
func (s Statement) counted() Statement {
	if s.must != nil {
		s.Query = "WITH changed AS (" + s.Query + " RETURNING 1) SELECT omi_must_change($" +
			strconv.Itoa(len(s.Args)+1) + ", (SELECT count(*) FROM changed))"
		s.Args, s.affected = append(slices.Clip(s.Args), s.must.rows), nil
	}
	return s
}

// miscounted says whether err is of a counted statement that has changed another number of rows.
func miscounted(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && answer.Code == otherCount
}
