package subscriber

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// rows are keyrings taken apart into the rows of their tables.
type rows struct {
	keys    []keyRow
	cutoffs []cutoffRow
}

type keyRow struct {
	target  string
	service int64 // its id
	keyring.Key
}

type cutoffRow struct {
	target  string
	service int64 // its id
	keyring.Cutoff
}

func (r *rows) add(target string, k keyring.Keyring) {
	for _, key := range k.Keys {
		r.keys = append(r.keys, keyRow{target: target, Key: key})
	}
	for _, c := range k.Cutoffs {
		r.cutoffs = append(r.cutoffs, cutoffRow{target: target, Cutoff: c})
	}
}

// identify gives the rows the ids of their services.
func (r *rows) identify(ids map[string]int64) {
	for i := range r.keys {
		r.keys[i].service = ids[r.keys[i].target]
	}
	for i := range r.cutoffs {
		r.cutoffs[i].service = ids[r.cutoffs[i].target]
	}
}

// keyValues returns the rows of keys in the order of their primary key, each once, since one statement may not touch a row
// twice.
func (r *rows) keyValues() []any {
	slices.SortFunc(r.keys, func(a, b keyRow) int {
		return cmp.Or(cmp.Compare(a.service, b.service), bytes.Compare(a.PublicKey.Bytes(), b.PublicKey.Bytes()))
	})
	values := make([]any, 0, 5*len(r.keys))
	for i := 0; i < len(r.keys); {
		one := r.keys[i]
		for i++; i < len(r.keys) && r.keys[i].service == one.service && r.keys[i].PublicKey == one.PublicKey; i++ {
			one.Key = one.Join(r.keys[i].Key)
		}
		values = append(values, one.service, one.PublicKey.Bytes(), one.Position, one.From, one.End)
	}
	return values
}

// cutoffValues returns the rows of cutoffs in the order of their primary key, each once.
func (r *rows) cutoffValues() []any {
	slices.SortFunc(r.cutoffs, func(a, b cutoffRow) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.Order, b.Order), cmp.Compare(a.Time, b.Time))
	})
	values := make([]any, 0, 3*len(r.cutoffs))
	for _, row := range slices.Compact(r.cutoffs) {
		values = append(values, row.service, row.Order, row.Time)
	}
	return values
}

// writeKeyrings joins keyrings of services with these ids to those in the database. The statements are [keyring.Key.Join] in SQL.
func (s *Store) writeKeyrings(ctx context.Context, tx *sql.Tx, ids map[string]int64, r *rows) error {
	r.identify(ids)
	const keysInto = `INSERT INTO keys (service, public_key, position, from_time, end_time) `
	const keysJoin = ` ON CONFLICT (service, public_key) DO UPDATE SET
			position = CASE WHEN excluded.position > keys.position THEN excluded.position ELSE keys.position END,
			from_time = CASE WHEN excluded.position > keys.position OR excluded.position = keys.position
				AND excluded.from_time < keys.from_time THEN excluded.from_time ELSE keys.from_time END,
			end_time = CASE WHEN excluded.end_time < keys.end_time THEN excluded.end_time ELSE keys.end_time END`
	if err := s.insert(ctx, tx, "keys", keysInto, keysJoin, r.keyValues(),
		sqldb.Int, sqldb.Bytes, sqldb.Int, sqldb.Int, sqldb.Int); err != nil {
		return err
	}
	const cutoffsInto = `INSERT INTO cutoffs (service, position, cut_time) `
	const cutoffsJoin = ` ON CONFLICT (service, position, cut_time) DO NOTHING`
	return s.insert(ctx, tx, "cutoffs", cutoffsInto, cutoffsJoin, r.cutoffValues(), sqldb.Int, sqldb.Int, sqldb.Int)
}

// writeServices writes rows of services, each a target, head, max_sequence, filled and sequenced, which merge joins to those in
// the database, and returns the ids of all of them. They come in the order of their targets: two writers lock them in one
// order, and all else of a service after it.
func (s *Store) writeServices(ctx context.Context, tx *sql.Tx, values []any, merge string) (map[string]int64, error) {
	const into = `INSERT INTO services (id, target, head, max_sequence, filled, sequenced) `
	const returning = ` RETURNING id, target`
	ids := make(map[string]int64, len(values)/5)
	columns := []sqldb.Type{sqldb.Int, sqldb.Text, sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Int}
	for part := range s.db.Engine().Rows(1, columns, s.withIDs(values)) {
		if err := eachID(ctx, tx, into+part.Query+merge+returning, part.Args, ids); err != nil {
			return nil, fmt.Errorf("write the services: %w", err)
		}
	}
	return ids, nil
}

// withIDs puts an id before each row of services, for those that are new. SQLite is to give the next one itself. On a server,
// a sequence would be a privilege of its own, and begin anew on one that took over; and nobody meets a number of 62 bits twice.
func (s *Store) withIDs(values []any) []any {
	const width = 5
	first := rand.Int64N(1 << 62) //nolint:gosec // it only tells services apart
	rows := make([]any, 0, len(values)/width*(width+1))
	for row := range slices.Chunk(values, width) {
		var id any
		if s.db.Engine() != sqldb.SQLite {
			id = first + int64(len(rows))
		}
		rows = append(append(rows, id), row...)
	}
	return rows
}

func eachID(ctx context.Context, tx *sql.Tx, text string, args []any, ids map[string]int64) error {
	rows, err := tx.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id int64
		var target string
		if err := rows.Scan(&id, &target); err != nil {
			return err
		}
		ids[target] = id
	}
	return rows.Err()
}
