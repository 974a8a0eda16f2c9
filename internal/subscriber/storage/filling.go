package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// joinHistory joins the registry's account of a service to the service's row.
const joinHistory = `
	head = CASE WHEN excluded.head > services.head THEN excluded.head ELSE services.head END,
	max_sequence = CASE WHEN excluded.max_sequence > services.max_sequence
		THEN excluded.max_sequence ELSE services.max_sequence END,
	filled = CASE WHEN excluded.filled >= services.max_sequence THEN excluded.filled ELSE services.filled END,
	sequenced = CASE WHEN excluded.filled >= services.max_sequence THEN 0 ELSE services.sequenced END`

// Fill joins the registry's own account of a service, [keyring.OfHistory], or the last part of it.
// That closes the gap in the service's events, unless the account is older than one of the events:
// then the gap may lie between the two.
func (s *Store) Fill(ctx context.Context, target events.Target, history keyring.Keyring) error {
	one := service{target.String(), history.Head, history.Head, history.Head, 0}
	return s.fill(ctx, one, history, `DELETE FROM filling WHERE service = $1`)
}

// FillPart joins a part of the registry's account that doesn't close the gap yet, and remembers
// that everything up to a sequence is there.
func (s *Store) FillPart(ctx context.Context, target events.Target, part keyring.Keyring, kept int64) error {
	const remember = `INSERT INTO filling (service, kept) VALUES ($1, $2)
		ON CONFLICT (service) DO UPDATE SET kept = excluded.kept`
	return s.fill(ctx, service{target: target.String()}, part, remember, kept)
}

func (s *Store) fill(ctx context.Context, one service, part keyring.Keyring, then string, args ...any) error {
	effects := rows{keys: make([]keyRow, 0, len(part.Keys))}
	effects.add(one.target, part)
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		ids, err := s.writeServices(ctx, tx, []service{one}, joinHistory)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, then, append([]any{ids[one.target]}, args...)...); err != nil {
			return err
		}
		return s.writeKeyrings(ctx, tx, ids, &effects)
	})
	if err != nil {
		return fmt.Errorf("fill the history of %s: %w", one.target, err)
	}
	return nil
}

// Filled returns up to which sequence parts of the registry's account of a service are there for
// good.
func (s *Store) Filled(ctx context.Context, target events.Target) (kept int64, err error) {
	id, _, err := s.idOf(ctx, target)
	if err == nil && id != 0 {
		err = s.db.QueryRow(ctx, `SELECT kept FROM filling WHERE service = $1`, id).Scan(&kept)
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("look how far the history of %s is filled: %w", target, err)
	}
	return kept, nil
}
