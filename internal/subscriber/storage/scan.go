package storage

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"iter"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// Keyrings streams all services as they are at one time. It ends after the first error. It neither
// holds all services at once nor sorts them: all three tables have this order.
func (s *Store) Keyrings(ctx context.Context) iter.Seq2[Service, error] {
	return func(yield func(Service, error) bool) {
		if err := s.scan(ctx, func(service Service) bool { return yield(service, nil) }); err != nil {
			yield(Service{}, fmt.Errorf("read keyrings: %w", err))
		}
	}
}

// Read runs read, which iterates over [Store.Keyrings], as [sqldb.DB.Read] does.
func (s *Store) Read(ctx context.Context, read func() error) error { return s.db.Read(ctx, read) }

// scan calls yield with each service, until it returns false.
func (s *Store) scan(ctx context.Context, yield func(Service) bool) error {
	conn, err := s.db.Unhurried().Reader().Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if s.db.Engine() == sqldb.SQLite {
		// The scan reads each page of the file once, and keeping them all would take more than 100
		// MB. This connection serves only the scan.
		if _, err := conn.ExecContext(ctx, "PRAGMA cache_size = -4096"); err != nil {
			return err
		}
		defer func() { _ = conn.Raw(func(any) error { return driver.ErrBadConn }) }()
	}
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // it only read
	cutoffs, err := readCutoffs(ctx, tx)
	if err != nil {
		return err
	}
	const query = `SELECT s.id, s.target, s.head, s.max_sequence, s.filled + s.sequenced, k.public_key, k.position, k.from_time, k.end_time
		FROM services AS s LEFT JOIN keys AS k ON k.service = s.id ORDER BY s.id`
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	one := scanned{cutoffs: cutoffs}
	for rows.Next() {
		done, err := one.next(rows)
		if err != nil {
			return err
		}
		if done && !yield(one.before) {
			return nil
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if err := cutoffs.checkEmpty(); err != nil {
		return err
	}
	if one.any {
		yield(one.whole())
	}
	return nil
}

// scanned is the service whose rows are being read.
type scanned struct {
	cutoffs *cutoffs
	any     bool // there is a service
	id      int64
	service Service
	before  Service // the service before it, which is complete

	row struct {
		target, public              sql.RawBytes
		id, head, sequence, seen    number
		position, fromTime, endTime number
	}
}

// number is a column of integers, 0 for NULL. It spares database/sql reflection.
type number int64

// Scan implements [sql.Scanner].
func (n *number) Scan(value any) error {
	switch v := value.(type) {
	case int64:
		*n = number(v)
	case nil:
		*n = 0
	default:
		return fmt.Errorf("a column of integers has a %T", value)
	}
	return nil
}

// next reads a row, and says whether the service before it is complete.
func (s *scanned) next(rows *sql.Rows) (done bool, err error) {
	r := &s.row
	if err := rows.Scan(&r.id, &r.target, &r.head, &r.sequence, &r.seen, &r.public, &r.position, &r.fromTime, &r.endTime); err != nil {
		return false, err
	}
	if !s.any || int64(r.id) != s.id {
		if done = s.any; done {
			s.before = s.whole()
		}
		s.any, s.id = true, int64(r.id)
		target, err := events.ParseTarget(string(r.target))
		if err != nil {
			return false, fmt.Errorf("target %q: %w", r.target, err)
		}
		s.service = Service{Target: target, Sequence: int64(r.sequence), Gap: r.sequence > r.seen}
		s.service.Keyring = keyring.Keyring{Head: int64(r.head), Cutoffs: s.cutoffs.dequeue(s.id)}
	}
	if r.public == nil { // all that is known of the service is that it was revoked
		return done, nil
	}
	key, err := events.PublicKeyFromBytes(r.public)
	if err != nil {
		return false, fmt.Errorf("a key of %s: %w", s.service.Target, err)
	}
	s.service.Keyring.Keys = append(s.service.Keyring.Keys, keyring.Key{
		PublicKey: key, Position: int64(r.position), From: int64(r.fromTime), End: int64(r.endTime),
	})
	return done, nil
}

// whole returns the service with all its rows.
func (s *scanned) whole() Service { return s.service.sorted() }

// cutoffs are the cutoffs of all services, in the order of the services' ids. They are few, unless
// very many services were reset or revoked.
type cutoffs []cutoff

type cutoff struct {
	service int64
	keyring.Cutoff
}

// readCutoffs reads the cutoffs of all services.
func readCutoffs(ctx context.Context, tx *sql.Tx) (*cutoffs, error) {
	rows, err := tx.QueryContext(ctx, `SELECT service, position, cut_time FROM cutoffs ORDER BY service`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all := &cutoffs{}
	var service, order, time number
	for rows.Next() {
		if err := rows.Scan(&service, &order, &time); err != nil {
			return nil, err
		}
		*all = append(*all, cutoff{int64(service), keyring.Cutoff{Order: int64(order), Time: int64(time)}})
	}
	return all, rows.Err()
}

// dequeue removes and returns the cutoffs of a service. Services must come in the order of their
// ids.
func (c *cutoffs) dequeue(service int64) (list []keyring.Cutoff) {
	for ; len(*c) > 0 && (*c)[0].service == service; *c = (*c)[1:] {
		list = append(list, (*c)[0].Cutoff)
	}
	return list
}

// checkEmpty fails if some cutoffs are left, because their services are missing or out of order.
// Without its cutoffs, a key that was reset would look good.
func (c *cutoffs) checkEmpty() error {
	if len(*c) == 0 {
		return nil
	}
	return fmt.Errorf("a cutoff of the service with id %d has no service, or comes in another order than the services", (*c)[0].service)
}
