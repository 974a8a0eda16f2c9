package sqldb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

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
