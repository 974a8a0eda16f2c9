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

const (
	// fewKeys is the highest head with which all keys of a service are read and then sorted. Only
	// services beyond it need the index keys_newest. The index leaves out a service's first 256
	// events, so services that rotate now and then don't pay for it.
	fewKeys = 1024
	// mostInGrace is how many keys may be in grace, or otherwise don't count, before fewer ended
	// keys come than were asked for.
	mostInGrace = 64
)

// NewestKeys returns the keyring of a service with its newest keys, as many ended keys as asked for
// if it had that many, and with what ends them. It costs the same however many keys a service had.
// An unknown service has no keys.
func (s *Store) NewestKeys(ctx context.Context, target events.Target, ended int) (keyring.Keyring, error) {
	id, one, err := s.idOf(ctx, target)
	if err != nil || id == 0 {
		return keyring.Keyring{}, err
	}
	if err := s.readNewest(ctx, id, int64(ended+mostInGrace), &one); err != nil {
		return keyring.Keyring{}, fmt.Errorf("read the newest keys of %s: %w", target, err)
	}
	return one.sorted().Keyring, nil
}

// idOf returns a service's id, its head and its sequence, or 0 if the service is unknown.
func (s *Store) idOf(ctx context.Context, target events.Target) (id int64, one Service, err error) {
	const query = `SELECT s.id, s.head, s.max_sequence FROM services AS s WHERE s.target = $1`
	one.Target = target
	err = s.db.QueryRow(ctx, query, target.String()).Scan(&id, &one.Keyring.Head, &one.Sequence)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, one, fmt.Errorf("look for the service %s: %w", target, err)
	}
	return id, one, nil
}

// The newest rows of a service: those of the events after $2, if the registry counts its events. So
// the result doesn't depend on whether the database follows the index or sorts what it finds. A
// position below 0 is that of an event which replaced the key; the event that brought the key is
// unknown.
const (
	fewOf    = `SELECT 1, position, from_time, end_time, public_key FROM keys WHERE service = $1 LIMIT 2048`
	newestOf = `SELECT 1, position, from_time, end_time, public_key FROM keys
		WHERE service = $1 AND position > 256 AND position > $2 ORDER BY position DESC LIMIT $3`
	replacedOf = `SELECT 1, position, from_time, end_time, public_key FROM keys
		WHERE service = $1 AND position < 0 AND position < $2 ORDER BY position LIMIT $3`
	newestCutoffsOf = `SELECT 2, position, cut_time, 0, NULL FROM cutoffs
		WHERE service = $1 AND position > $2 ORDER BY position DESC LIMIT $3`
)

func (s *Store) readNewest(ctx context.Context, id, most int64, one *Service) error {
	after := int64(0)
	switch head := one.Keyring.Head; {
	case head <= fewKeys:
		if err := s.addRows(ctx, one, fewOf, id); err != nil {
			return err
		}
	case head == one.Sequence: // otherwise the registry sends no sequences, and the head is a time
		after = head - 2*most // a revocation brings no key, and a binding follows it
		fallthrough
	default:
		if err := s.addRows(ctx, one, newestOf, id, after, most); err != nil {
			return err
		}
		if err := s.addRows(ctx, one, replacedOf, id, -after, most); err != nil {
			return err
		}
	}
	// An event makes one cutoff, or two if it is told in two ways.
	return s.addRows(ctx, one, newestCutoffsOf, id, after, 2*most)
}

// addRows adds the rows of a query to a service.
func (s *Store) addRows(ctx context.Context, one *Service, query string, args ...any) error {
	return s.db.Query(ctx, query, args, func(row sqldb.Row) error {
		var kind, x, y, z int64
		var public []byte
		if err := row.Scan(&kind, &x, &y, &z, &public); err != nil {
			return err
		}
		return one.add(kind, x, y, z, public)
	})
}
