package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
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

// keyColumn scans a public key. NULL is no key.
type keyColumn struct{ key *events.PublicKey }

// Scan implements sql.Scanner.
func (c keyColumn) Scan(v any) (err error) {
	switch v := v.(type) {
	case nil:
		*c.key = events.PublicKey{}
	case []byte:
		*c.key, err = events.PublicKeyFromBytes(v)
	default:
		err = fmt.Errorf("a public key can't be read from %T", v)
	}
	return err
}

// textColumn scans a value that has a text form.
type textColumn[T any] struct {
	into  *T
	parse func(string) (T, error)
}

// Scan implements sql.Scanner.
func (c textColumn[T]) Scan(v any) (err error) {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case []byte:
		s = string(v)
	default:
		return fmt.Errorf("a text can't be read from %T", v)
	}
	*c.into, err = c.parse(s)
	return err
}

func text(id *events.AppID) sql.Scanner     { return textColumn[events.AppID]{id, events.ParseAppID} }
func target(t *events.Target) sql.Scanner   { return textColumn[events.Target]{t, events.ParseTarget} }
func nonceText(n *events.Nonce) sql.Scanner { return textColumn[events.Nonce]{n, events.ParseNonce} }
func times(list *[]int64) sql.Scanner       { return textColumn[[]int64]{list, parseTimes} }

// keyBytes returns the value of a key's column.
func keyBytes(k events.PublicKey) any {
	if k.IsZero() {
		return nil
	}
	return k.Bytes()
}

// parseTimes and formatTimes keep a few times in one column, as numbers separated by spaces.
func parseTimes(s string) ([]int64, error) {
	var list []int64
	for field := range strings.FieldsSeq(s) {
		t, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

func formatTimes(list []int64) string {
	var b []byte
	for _, t := range list {
		b = append(strconv.AppendInt(b, t, 10), ' ')
	}
	return string(b)
}

// Position is how much of the stream of invalidations the database is known to have: every event up
// to it. Each event is committed before it is published, and the row is written after that, so a
// position that holds for the database also holds for every consistent backup of it.
type Position struct {
	// Created: when the stream was created, nanoseconds since the Unix epoch; another stream counts
	// from 1 again.
	Created int64
	Place   uint64 // every event up to this sequence of the stream is in the history
	Writes  int64  // how often the row has been written
}

// OlderThan reports whether a database at p can't be the one that was at seen before. A replica
// that finds missing events also moves the place back, so that all other replicas compare too.
func (p Position) OlderThan(seen Position) bool {
	return p.Created != seen.Created || p.Place < seen.Place || p.Writes < seen.Writes
}

const selectPosition = "SELECT created_at, position, writes FROM stream_positions WHERE stream = $1"

// Position reads the row; false: there is no row.
func (s *Ledger) Position(ctx context.Context) (Position, bool, error) {
	return scanPosition(s.db.QueryRow(ctx, selectPosition, streams.Invalidations))
}

func scanPosition(row sqldb.Row) (p Position, exists bool, err error) {
	var place int64
	err = row.Scan(&p.Created, &place, &p.Writes)
	if errors.Is(err, sql.ErrNoRows) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("read the position in the stream: %w", err)
	}
	p.Place = uint64(place)
	return p, true, nil
}

// ErrMoved means that a comparison is void: the row is older than it was when the comparison began,
// or belongs to another stream, or the connection to the database was lost meanwhile.
var ErrMoved = errors.New("the database was away or restored, or the stream was created again, during the comparison")

// SetPosition writes the result of a comparison that began at this row (zero: there was none): up
// to which place of which stream nothing is missing. It moves the row back only if back is set.
func (s *Ledger) SetPosition(ctx context.Context, began, found Position, back bool) (Position, error) {
	var next Position
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		now, exists, err := scanPosition(tx.QueryRow(ctx, selectPosition, streams.Invalidations))
		if err != nil {
			return err
		}
		if began != (Position{}) && (!exists || now.OlderThan(began)) {
			return ErrMoved
		}
		next = found
		next.Writes = now.Writes + 1
		if exists && now.Created == found.Created && !back {
			next.Place = max(next.Place, now.Place)
		}
		_, err = tx.Exec(ctx, `INSERT INTO stream_positions (stream, created_at, position, writes) VALUES ($1, $2, $3, $4)
			ON CONFLICT (stream) DO UPDATE SET created_at = excluded.created_at, position = excluded.position, writes = excluded.writes`,
			streams.Invalidations, next.Created, int64(next.Place), next.Writes)
		return err
	})
	if err != nil {
		return next, fmt.Errorf("write the position in the stream: %w", err)
	}
	return next, nil
}

// move moves the row forward to place, in the transaction that deletes what was published. It
// returns the new row, or false if this is not the database that was at p.
func (p Position) move(ctx context.Context, tx *sqldb.Tx, place uint64) (Position, bool, error) {
	next := Position{Created: p.Created}
	var at int64
	err := tx.QueryRow(ctx, `UPDATE stream_positions SET writes = writes + 1,
		position = CASE WHEN position < CAST($1 AS BIGINT) THEN CAST($1 AS BIGINT) ELSE position END
		WHERE stream = $2 AND created_at = $3 AND position >= $4 AND writes >= $5 RETURNING position, writes`,
		int64(place), streams.Invalidations, p.Created, int64(p.Place), p.Writes).Scan(&at, &next.Writes)
	if errors.Is(err, sql.ErrNoRows) {
		return next, false, nil
	}
	next.Place = uint64(at)
	return next, err == nil, err
}
