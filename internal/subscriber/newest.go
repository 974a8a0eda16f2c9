package subscriber

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

const (
	// fewKeys is up to which head all keys of a service are read, and their order is made then. Only beyond, the index keys_newest
	// is of use: it has none of a service's first 256 events, and so costs the services nothing that rotate now and then.
	fewKeys = 1024
	// mostInGrace is how many keys may be in grace, or otherwise in no state to count, and all the same as many as are asked for come
	// that have ended.
	mostInGrace = 64
)

// NewestKeys returns the keyring of a service with its newest keys and with what ends them: so many keys that have ended, if it had
// as many. It costs the same however many keys a service had. A service that is not known has none.
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

// idOf returns a service's id, its head and its sequence; 0: it is not known.
func (s *Store) idOf(ctx context.Context, target events.Target) (id int64, one Service, err error) {
	const query = `SELECT s.id, s.head, s.max_sequence FROM services AS s WHERE s.target = $1`
	one.Target = target
	err = s.db.Reader().QueryRowContext(ctx, query, target.String()).Scan(&id, &one.Keyring.Head, &one.Sequence)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, one, fmt.Errorf("look for the service %s: %w", target, err)
	}
	return id, one, nil
}

// The newest rows of a service: those of the events after $2, where the registry counts its events. So nothing depends on whether the
// database takes the index's order, or reads what it finds and sorts it. A position below 0 is that of an event which replaced
// the key, and which brought it is not known.
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
	case head == one.Sequence: // else the registry sends no sequences, and the head is a time
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
	return s.addRows(ctx, one, newestCutoffsOf, id, after, 2*most) // an event makes one, or two where it is told in two ways
}

// addRows adds the rows of a query to a service.
func (s *Store) addRows(ctx context.Context, one *Service, query string, args ...any) error {
	rows, err := s.db.Reader().QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var kind, x, y, z int64
		var public sql.RawBytes
		if err := rows.Scan(&kind, &x, &y, &z, &public); err != nil {
			return err
		}
		if err := one.add(kind, x, y, z, public); err != nil {
			return err
		}
	}
	return rows.Err()
}
