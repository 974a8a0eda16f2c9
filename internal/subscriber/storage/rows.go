package storage

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// rows are keyrings split into the rows of their tables.
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

// keyValues returns the rows of keys in the order of their primary key, each once, because one
// statement may not touch a row twice.
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

// writeKeyrings joins keyrings of services with these ids to those in the database, at the end of a
// transaction. The statements are [keyring.Key.Join] in SQL.
func (s *Store) writeKeyrings(ctx context.Context, tx *sqldb.Tx, ids map[string]int64, r *rows) error {
	r.identify(ids)
	const keysInto = ` INTO keys (service, public_key, position, from_time, end_time) `
	const keysJoin = ` ON CONFLICT (service, public_key) DO UPDATE SET
			position = CASE WHEN excluded.position > keys.position THEN excluded.position ELSE keys.position END,
			from_time = CASE WHEN excluded.position > keys.position OR excluded.position = keys.position
				AND excluded.from_time < keys.from_time THEN excluded.from_time ELSE keys.from_time END,
			end_time = CASE WHEN excluded.end_time < keys.end_time THEN excluded.end_time ELSE keys.end_time END`
	var p sqldb.Pipeline
	s.insert(&p, "keys", keysInto, keysJoin, r.keyValues(), sqldb.Int, sqldb.Bytes, sqldb.Int, sqldb.Int, sqldb.Int)
	const cutoffsInto = ` INTO cutoffs (service, position, cut_time) `
	const cutoffsJoin = ` ON CONFLICT (service, position, cut_time) DO NOTHING`
	s.insert(&p, "cutoffs", cutoffsInto, cutoffsJoin, r.cutoffValues(), sqldb.Int, sqldb.Int, sqldb.Int)
	return tx.RunAtCommit(ctx, &p)
}
