package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A round trip is a large part of what a short statement costs on a server. So statements that
// don't need each other's answers go together, through pgx itself and not through database/sql.

// Batcher is a connection to a server.
type Batcher interface {
	// Batch sends statements together, and passes the answer to each to read, with its index. It
	// returns how many statements succeeded. After one that fails, the server skips the rest.
	Batch(ctx context.Context, batch *pgx.Batch, read func(i int, results pgx.BatchResults) error) (done int, err error)
}

// runTogether runs statements on a connection in one round trip. It returns how many were done.
func runTogether(ctx context.Context, conn *sql.Conn, statements []statement) (done int, err error) {
	batch := pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, 0, len(statements))}
	for i := range statements {
		batch.Queue(statements[i].query, statements[i].args...)
	}
	err = conn.Raw(func(c any) (err error) {
		b, ok := c.(Batcher)
		if !ok {
			return fmt.Errorf("a server's connection is a %T", c)
		}
		done, err = b.Batch(ctx, &batch, func(i int, results pgx.BatchResults) error { return statements[i].read(results) })
		return err
	})
	if err != nil {
		err = about(statements[min(done, len(statements)-1):], err)
	}
	return done, err
}

// runOn runs statements outside a transaction. Like database/sql, it takes another connection if
// one is dead before anything is sent.
func runOn(ctx context.Context, pool *sql.DB, statements []statement) error {
	const most = 3
	for attempt := 1; ; attempt++ {
		conn, err := pool.Conn(ctx)
		if err != nil {
			return err
		}
		_, err = runTogether(ctx, conn, statements)
		_ = conn.Close()
		if !errors.Is(err, driver.ErrBadConn) || attempt == most {
			return err
		}
	}
}

// about names the statement that an error is about: the first of these, or the one that could not
// be prepared.
func about(statements []statement, err error) error {
	s := &statements[0]
	var unprepared pgx.ErrPreprocessingBatch
	if errors.As(err, &unprepared) {
		for i := range statements {
			if statements[i].query == unprepared.SQL() {
				s = &statements[i]
			}
		}
	}
	if s.must != nil && miscounted(err) {
		return notCommitted{s.failed(s.must.otherwise)}
	}
	return s.failed(err)
}

// Batch implements [Batcher].
func (s *session) Batch(ctx context.Context, batch *pgx.Batch, read func(int, pgx.BatchResults) error) (done int, err error) {
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
	if done, err = send(ctx, conn, batch, read); err == nil {
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

func send(ctx context.Context, conn *pgx.Conn, batch *pgx.Batch, read func(int, pgx.BatchResults) error) (done int, err error) {
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
func (s *statement) read(results pgx.BatchResults) error {
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
func (s statement) counted() statement {
	if s.must != nil {
		s.query = "WITH changed AS (" + s.query + " RETURNING 1) SELECT omi_must_change($" +
			strconv.Itoa(len(s.args)+1) + ", (SELECT count(*) FROM changed))"
		s.args, s.affected = append(slices.Clip(s.args), s.must.rows), nil
	}
	return s
}

// miscounted says whether err is of a counted statement that has changed another number of rows.
func miscounted(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && answer.Code == otherCount
}
