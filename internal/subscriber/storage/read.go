package storage

import (
	"context"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// Service is what is known of one service.
type Service struct {
	Target   events.Target
	Keyring  keyring.Keyring
	Sequence int64 // the highest of any event; 0: the registry sends none
	Gap      bool  // an event below Sequence was not seen, nor filled from the history
}

// The rows of a service, from three tables in one statement, so in one snapshot.
const (
	keyRows = `SELECT s.target, 1 AS kind, k.position AS a, k.from_time AS b, k.end_time AS c, k.public_key AS d
		FROM services AS s JOIN keys AS k ON k.service = s.id`
	cutoffRows  = `SELECT s.target, 2, c.position, c.cut_time, 0, NULL FROM services AS s JOIN cutoffs AS c ON c.service = s.id`
	serviceRows = `SELECT s.target, 3, s.head, s.max_sequence, s.filled + s.sequenced, NULL FROM services AS s`
)

// KeyringOf returns one service, or false if the subscriber has seen no event of it.
func (s *Store) KeyringOf(ctx context.Context, target events.Target) (Service, bool, error) {
	const only = ` WHERE s.target = $1`
	text := keyRows + only + ` UNION ALL ` + cutoffRows + only + ` UNION ALL ` + serviceRows + only
	return s.service(ctx, text, []any{target.String()})
}

// FindKey returns the service whose key this is or was, or false. Its keyring has only this key and
// what ends it, so a service with very many keys answers as fast as any.
func (s *Store) FindKey(ctx context.Context, key events.PublicKey) (Service, bool, error) {
	// Two services may have it, in a stream that another registry filled.
	owner := ` WHERE s.id = (SELECT o.id FROM keys AS f JOIN services AS o ON o.id = f.service
		WHERE f.public_key = $1 ORDER BY o.target LIMIT 1)`
	text := keyRows + owner + ` AND k.public_key = $1 UNION ALL ` + cutoffRows + owner + ` UNION ALL ` + serviceRows + owner
	return s.service(ctx, text, []any{key.Bytes()})
}

// service assembles a service from its rows of keys, cutoffs and services, or returns false if
// there are none.
func (s *Store) service(ctx context.Context, query string, args []any) (service Service, found bool, err error) {
	err = s.db.Query(ctx, query, args, func(row sqldb.Row) error {
		found = true
		return service.next(row)
	})
	if err != nil {
		return Service{}, false, fmt.Errorf("read keyrings: %w", err)
	}
	return service.sorted(), found, nil
}

// next adds a row.
func (s *Service) next(row sqldb.Row) error {
	var (
		target        string
		kind, x, y, z int64
		public        []byte
	)
	if err := row.Scan(&target, &kind, &x, &y, &z, &public); err != nil {
		return err
	}
	if s.Target == (events.Target{}) {
		parsed, err := events.ParseTarget(target)
		if err != nil {
			return fmt.Errorf("target %q: %w", target, err)
		}
		s.Target = parsed
	}
	return s.add(kind, x, y, z, public)
}

func (s *Service) add(kind, x, y, z int64, public []byte) error {
	switch kind {
	case 1:
		key, err := events.PublicKeyFromBytes(public)
		if err != nil {
			return fmt.Errorf("a key of %s: %w", s.Target, err)
		}
		s.Keyring.Keys = append(s.Keyring.Keys, keyring.Key{PublicKey: key, Position: x, From: y, End: z})
	case 2:
		s.Keyring.Cutoffs = append(s.Keyring.Cutoffs, keyring.Cutoff{Order: x, Time: y})
	default:
		s.Keyring.Head, s.Sequence, s.Gap = x, y, y > z
	}
	return nil
}

// sorted returns the service with its keyring in the order that package keyring keeps. It may have
// very many keys.
func (s Service) sorted() Service {
	s.Keyring.Sort()
	return s
}

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
