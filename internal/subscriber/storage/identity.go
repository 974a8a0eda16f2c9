package storage

import (
	"context"
	"crypto/rand"
	"fmt"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// ID returns the random id of this database. The first process that asks for it writes it. A copy
// of the database has the same id.
func (s *Store) ID(ctx context.Context) (id string, err error) {
	const insert = `INSERT INTO identity (name, value) VALUES ('database', $1) ON CONFLICT (name) DO NOTHING`
	const query = `SELECT value FROM identity WHERE name = 'database'`
	err = s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(ctx, insert, rand.Text()); err != nil {
			return err
		}
		return tx.QueryRow(ctx, query).Scan(&id)
	})
	if err != nil {
		return "", fmt.Errorf("read the id of the database: %w", err)
	}
	return id, nil
}

// Mark leaves a mark for other processes on this database. wipe removes it.
func (s *Store) Mark(ctx context.Context, name string) (wipe func(), err error) {
	err = s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO identity (name, value) VALUES ($1, '') ON CONFLICT (name) DO NOTHING`, markPrefix+name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark the database: %w", err)
	}
	return func() {
		ctx := context.WithoutCancel(ctx)
		_ = s.db.InTx(ctx, func(tx *sqldb.Tx) error { // a mark that stays does no harm
			_, err := tx.Exec(ctx, `DELETE FROM identity WHERE name = $1`, markPrefix+name)
			return err
		})
	}, nil
}

// HasMark says whether another process on this very database has left this mark.
func (s *Store) HasMark(ctx context.Context, name string) (has bool, err error) {
	const query = `SELECT count(*) > 0 FROM identity WHERE name = $1`
	if err := s.db.QueryRow(ctx, query, markPrefix+name).Scan(&has); err != nil {
		return false, fmt.Errorf("look for a mark in the database: %w", err)
	}
	return has, nil
}

const markPrefix = "mark:"
