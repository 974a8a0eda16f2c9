package ledger

import (
	"context"
	"fmt"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// tables is the registry's database: SQLite, PostgreSQL or CockroachDB, with one set of statements.
type tables struct{ db *sqldb.DB }

// New returns what is done with a registry's database, whose schema is up to date.
func New(db *sqldb.DB) (*Ledger, *Outbox, *Letters, *Admin) {
	t := tables{db}
	return &Ledger{t}, &Outbox{t}, &Letters{t}, &Admin{t}
}

// Ledger is what the registry reads and writes for each request and for each question.
type Ledger struct{ tables }

// Outbox is the messages of committed changes that wait to be published.
type Outbox struct{ tables }

// Letters is the dead letters: requests that could not be decided.
type Letters struct{ tables }

// Admin is the operators' work.
type Admin struct{ tables }

// each runs a query outside a transaction, row by row.
func (s tables) each(ctx context.Context, query string, args []any, row func(sqldb.Row) error) error {
	var p sqldb.Pipeline
	p.Query("query", query, args, row)
	return s.db.Run(ctx, &p)
}

// eachPart is each for a query over rows of these columns, which replace its %s.
func (s tables) eachPart(ctx context.Context, query string, types []sqldb.Type, values []any, row func(sqldb.Row) error) error {
	var p sqldb.Pipeline
	s.query(&p, "query", query, types, values, row)
	return s.db.Run(ctx, &p)
}

// query adds such a query to a pipeline.
func (s tables) query(p *sqldb.Pipeline, what, query string, types []sqldb.Type, values []any, row func(sqldb.Row) error) {
	for part := range s.db.Engine().Rows(1, types, values) {
		p.Query(what, fmt.Sprintf(query, part.Query), part.Args, row)
	}
}

// eachPartAgain is eachPart for a query that [sqldb.DB.Read] may run again: row must accept the
// same rows once more.
func (s tables) eachPartAgain(ctx context.Context, query string, types []sqldb.Type, values []any, row func(sqldb.Row) error) error {
	return s.db.Read(ctx, func() error { return s.eachPart(ctx, query, types, values, row) })
}

// read runs queries together, and again as [sqldb.DB.Read] does. Their functions find the same
// then.
func (s tables) read(ctx context.Context, add func(p *sqldb.Pipeline)) error {
	return s.db.Read(ctx, func() error {
		var p sqldb.Pipeline
		add(&p)
		return s.db.Run(ctx, &p)
	})
}

// write runs a transaction that writes a batch. If a row has a unique key that exists already, it
// returns [ErrTaken].
func (s tables) write(ctx context.Context, fn func(*sqldb.Tx) error) error {
	err := s.db.InTx(ctx, fn)
	if sqldb.Duplicate(err) {
		return ErrTaken
	}
	return err
}

// all adds a statement over rows of these columns, which replace its %s, to those that write a
// batch. If it writes fewer rows, the transaction fails with the error fewer; nil: fewer rows are
// allowed.
func (s tables) all(p *sqldb.Pipeline, what, query string, types []sqldb.Type, values []any, fewer error) {
	for part := range s.db.Engine().Rows(1, types, values) {
		text := fmt.Sprintf(query, part.Query)
		if fewer == nil {
			p.Exec(what, text, part.Args, nil)
		} else {
			p.Must(what, text, part.Args, int64(part.Len), fewer)
		}
	}
}

// unhurried returns the tables for work that reads all of them.
func (s tables) unhurried() tables { return tables{s.db.Unhurried()} }
