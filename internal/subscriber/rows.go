package subscriber

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// rows are keyrings taken apart into the rows of their tables, each row once, since one statement may not touch a row
// twice.
type rows struct {
	keys    map[keyRow]keyring.Key
	cutoffs map[cutoffRow]struct{}
}

type keyRow struct {
	target string
	key    events.PublicKey
}

type cutoffRow struct {
	target string
	keyring.Cutoff
}

func (r *rows) add(target string, k keyring.Keyring) {
	if r.keys == nil {
		r.keys, r.cutoffs = make(map[keyRow]keyring.Key), make(map[cutoffRow]struct{})
	}
	for _, key := range k.Keys {
		row := keyRow{target, key.PublicKey}
		if have, ok := r.keys[row]; ok {
			key = have.Join(key)
		}
		r.keys[row] = key
	}
	for _, c := range k.Cutoffs {
		r.cutoffs[cutoffRow{target, c}] = struct{}{}
	}
}

// keyArgs returns the rows of keys in the order of their primary key, as parameters.
func (r *rows) keyArgs() []any {
	order := make([]keyRow, 0, len(r.keys))
	for row := range r.keys {
		order = append(order, row)
	}
	slices.SortFunc(order, func(a, b keyRow) int {
		return cmp.Or(cmp.Compare(a.target, b.target), bytes.Compare(a.key.Bytes(), b.key.Bytes()))
	})
	args := make([]any, 0, 5*len(order))
	for _, row := range order {
		key := r.keys[row]
		args = append(args, row.target, row.key.Bytes(), key.Position, key.From, key.End)
	}
	return args
}

// cutoffArgs returns the rows of cutoffs in the order of their primary key, as parameters.
func (r *rows) cutoffArgs() []any {
	order := make([]cutoffRow, 0, len(r.cutoffs))
	for row := range r.cutoffs {
		order = append(order, row)
	}
	slices.SortFunc(order, func(a, b cutoffRow) int {
		return cmp.Or(cmp.Compare(a.target, b.target), cmp.Compare(a.Order, b.Order), cmp.Compare(a.Time, b.Time))
	})
	args := make([]any, 0, 3*len(order))
	for _, row := range order {
		args = append(args, row.target, row.Order, row.Time)
	}
	return args
}

// writeKeyrings joins keyrings to those in the database. The statements are [keyring.Key.Join] in SQL.
func (s *Store) writeKeyrings(ctx context.Context, tx *sql.Tx, r *rows) error {
	const keysInto = `INSERT INTO keys (target, public_key, position, from_time, end_time) VALUES `
	const keysJoin = ` ON CONFLICT (target, public_key) DO UPDATE SET
			position = CASE WHEN excluded.position > keys.position THEN excluded.position ELSE keys.position END,
			from_time = CASE WHEN excluded.position > keys.position OR excluded.position = keys.position
				AND excluded.from_time < keys.from_time THEN excluded.from_time ELSE keys.from_time END,
			end_time = CASE WHEN excluded.end_time < keys.end_time THEN excluded.end_time ELSE keys.end_time END`
	if err := s.insert(ctx, tx, "keys", keysInto, keysJoin, r.keyArgs(),
		sqldb.Text, sqldb.Bytes, sqldb.Int, sqldb.Int, sqldb.Int); err != nil {
		return err
	}
	const cutoffsInto = `INSERT INTO cutoffs (target, position, cut_time) VALUES `
	const cutoffsJoin = ` ON CONFLICT (target, position, cut_time) DO NOTHING`
	return s.insert(ctx, tx, "cutoffs", cutoffsInto, cutoffsJoin, r.cutoffArgs(), sqldb.Text, sqldb.Int, sqldb.Int)
}
