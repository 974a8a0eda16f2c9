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

// Owner is the kind of process that a database belongs to. Each process has a database of its own.
// Their migrations all count from 1, so those of one would do harm in another's database.
type Owner string

// The owners, as the table database_owner names them.
const (
	Registry Owner = "registry"
	Auth     Owner = "auth"
	Billing  Owner = "billing"

	unowned Owner = "" // the database is new
)

// String is what errors call the owner's database.
func (o Owner) String() string {
	switch o {
	case Registry:
		return "the registry's"
	case Auth:
		return "Auth's"
	case Billing:
		return "Billing's"
	}
	return fmt.Sprintf("another program's (%s)", string(o))
}

// ownerTable says whose database it is, in one row. It is there before the first migration.
const ownerTable = "database_owner"

// ownerRow returns the statements that give a new database its owner. Each can be repeated.
func ownerRow(owner Owner) []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS ` + ownerTable + ` (
			id    BIGINT NOT NULL PRIMARY KEY CHECK (id = 1), -- there is one row
			owner TEXT   NOT NULL
		)`,
		`INSERT INTO ` + ownerTable + ` (id, owner) VALUES (1, '` + string(owner) + `') ON CONFLICT DO NOTHING`,
	}
}

// contents is what a database says of itself before anything is done to it.
type contents struct {
	owner   Owner
	applied []int64 // its migrations, in ascending order
}

// querier is a pool, or a pool in a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (db *DB) contents(ctx context.Context, q querier) (have contents, err error) {
	query := `SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() AND table_name`
	if db.engine == SQLite {
		query = `SELECT name FROM sqlite_master WHERE type = 'table' AND name`
	}
	tables, err := column[string](ctx, q, query+` IN ('`+ownerTable+`', '`+goose.DefaultTablename+`')`)
	if err != nil {
		return contents{}, fmt.Errorf("look whose database it is: %w", err)
	}
	if slices.Contains(tables, ownerTable) {
		owners, err := column[Owner](ctx, q, `SELECT owner FROM `+ownerTable)
		if err != nil {
			return contents{}, fmt.Errorf("look whose database it is: %w", err)
		}
		if len(owners) > 0 { // a server may have stopped before the row was written
			have.owner = owners[0]
		}
	}
	if slices.Contains(tables, goose.DefaultTablename) {
		const versions = `SELECT DISTINCT version_id FROM ` + goose.DefaultTablename + ` WHERE is_applied AND version_id > 0 ORDER BY version_id`
		if have.applied, err = column[int64](ctx, q, versions); err != nil {
			return contents{}, fmt.Errorf("look which migrations the database has: %w", err)
		}
	}
	return have, nil
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

// objection completes the sentence "this database is ..." if the owner can't have it.
func (c contents) objection(owner Owner) string {
	switch {
	case c.owner == unowned && len(c.applied) > 0:
		return "from before the first release, or another program's"
	case c.owner != unowned && c.owner != owner:
		return fmt.Sprintf("%s, not %s", c.owner, owner)
	}
	return ""
}

// mustBe returns [ErrURL] unless the owner can have the database.
func (c contents) mustBe(owner Owner) error {
	if objection := c.objection(owner); objection != "" {
		return urlError("this database is " + objection + "; nothing was changed in it: name a new one, since each process has one of its own")
	}
	return nil
}

// Check returns [ErrURL] unless the database is the owner's, and has these migrations and no
// others. It changes nothing: it is for commands that read the database of a process, which may be
// running.
func (db *DB) Check(ctx context.Context, owner Owner, fsys fs.FS) error {
	_, want, err := db.migrations(fsys)
	if err != nil {
		return fmt.Errorf("check the schema: %w", err)
	}
	have, err := db.contents(ctx, db.reader)
	if err != nil {
		return db.judged(ctx, err)
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
