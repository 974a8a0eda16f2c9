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

// HasGap says whether a service has a gap in its history.
func (s *Store) HasGap(ctx context.Context, target events.Target) (gap bool, err error) {
	const query = `SELECT count(*) > 0 FROM services WHERE target = $1 AND max_sequence > filled + sequenced`
	if err := s.db.QueryRow(ctx, query, target.String()).Scan(&gap); err != nil {
		return false, fmt.Errorf("look for a gap in the history of %s: %w", target, err)
	}
	return gap, nil
}

// Gaps returns up to limit services with a gap in their history that follow after, in the
// database's order.
func (s *Store) Gaps(ctx context.Context, after events.Target, limit int) ([]events.Target, error) {
	gap := "gap" // as in the index, see the schema
	if s.db.Engine() == sqldb.SQLite {
		gap = "max_sequence > filled + sequenced"
	}
	query := `SELECT target FROM services WHERE ` + gap + ` AND target > $1 ORDER BY target LIMIT $2`
	from := ""
	if after != (events.Target{}) {
		from = after.String()
	}
	var gaps []events.Target
	err := s.db.Query(ctx, query, []any{from, int64(limit)}, func(row sqldb.Row) error {
		var text string
		if err := row.Scan(&text); err != nil {
			return err
		}
		target, err := events.ParseTarget(text)
		if err != nil {
			return fmt.Errorf("target %q: %w", text, err)
		}
		gaps = append(gaps, target)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the services with a gap: %w", err)
	}
	return gaps, nil
}

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
