package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/pressly/goose/v3"
)

// Owner says whose database it is. Each process has one of its own; their migrations count from 1 alike, so those of one would
// do harm in another's.
type Owner string

// The owners, as errors name them.
const (
	Registry Owner = "the registry's"
	Auth     Owner = "Auth's"
	Billing  Owner = "Billing's"

	nobody     Owner = ""                    // it is new
	subscriber Owner = "Auth's or Billing's" // of a release in which the two did not differ
)

// Tables by which a database tells its owner, in every version: the first that it gets, and one that keeps its name.
const (
	registryTable       = "apps"
	subscriberTable     = "applied"
	subscribersTableToo = "set_aside" // while applied is made anew
)

// onlyAuths is the first migration that Auth has and Billing has not. Those after it were made later.
const onlyAuths = 13

// contents is what a database tells of itself before anything is done to it.
type contents struct {
	owner   Owner
	applied []int64 // its migrations, in ascending order
}

// querier is a pool, or one that is in a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (db *DB) contents(ctx context.Context, q querier) (contents, error) {
	query := `SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() AND table_name`
	if db.engine == SQLite {
		query = `SELECT name FROM sqlite_master WHERE type = 'table' AND name`
	}
	query += ` IN ('` + goose.DefaultTablename + `', '` + registryTable + `', '` + subscriberTable + `', '` + subscribersTableToo + `')`
	tables, err := column[string](ctx, q, query)
	if err != nil {
		return contents{}, fmt.Errorf("look whose database it is: %w", err)
	}
	if !slices.Contains(tables, goose.DefaultTablename) {
		return contents{}, nil // what another program may have in there is not ours
	}
	const versions = `SELECT DISTINCT version_id FROM ` + goose.DefaultTablename + ` WHERE is_applied AND version_id > 0 ORDER BY version_id`
	applied, err := column[int64](ctx, q, versions)
	if err != nil {
		return contents{}, fmt.Errorf("look which migrations the database has: %w", err)
	}
	return contents{ownerOf(tables, applied), applied}, nil
}

func ownerOf(tables []string, applied []int64) Owner {
	switch {
	case slices.Contains(tables, registryTable):
		return Registry
	case !slices.Contains(tables, subscriberTable) && !slices.Contains(tables, subscribersTableToo):
		return nobody
	case slices.Contains(applied, onlyAuths):
		return Auth
	case len(applied) > 0 && applied[len(applied)-1] > onlyAuths:
		return Billing
	}
	return subscriber
}

// column returns the one column that a query has.
func column[T any](ctx context.Context, q querier, query string) (list []T, err error) {
	rows, err := q.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// mustBe returns [ErrURL] for another's database.
func (c contents) mustBe(owner Owner) error {
	switch {
	case c.owner == owner, c.owner == nobody, c.owner == subscriber && owner != Registry:
		return nil
	}
	return urlError(fmt.Sprintf("this database is %s, not %s; nothing was changed in it: name another, since each process has one of its own", c.owner, owner))
}

// Check returns [ErrURL] unless the database is the owner's, and has these migrations and no others. It changes nothing: it is
// for commands that look into the database of a process, which may be running.
func (db *DB) Check(ctx context.Context, owner Owner, fsys fs.FS) error {
	_, want, err := db.migrations(fsys)
	if err != nil {
		return fmt.Errorf("check the schema: %w", err)
	}
	have, err := db.contents(ctx, db.reader)
	if err != nil {
		return err
	}
	if err := have.mustBe(owner); err != nil {
		return err
	}
	missing := slices.ContainsFunc(want, func(v int64) bool { return !slices.Contains(have.applied, v) })
	switch {
	case missing && owner == Registry:
		return urlError("its schema is older than this program, or it is empty: first start omi-registry on it, or run omi-registry migrate")
	case missing:
		return urlError("its schema is older than this program, or it is empty: first start the process that it is for")
	case len(have.applied) > len(want):
		return urlError("its schema is newer than this program: use the program of the version that serves it")
	}
	return nil
}

// migrations returns the engine's files and their versions, in ascending order.
func (db *DB) migrations(fsys fs.FS) (files fs.FS, versions []int64, err error) {
	folder := "postgres"
	if db.engine == SQLite {
		folder = "sqlite"
	}
	if files, err = fs.Sub(fsys, folder); err != nil {
		return nil, nil, err
	}
	if db.engine == Cockroach {
		files = withoutPostgresOnly{files}
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		versions = append(versions, version)
	}
	slices.Sort(versions)
	return files, versions, nil
}
