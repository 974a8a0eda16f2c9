package storage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// SetAside is a message that is not to be applied (§7.2), kept for an operator to look at.
type SetAside struct {
	StreamSequence uint64 `json:"stream_sequence"`
	Subject        string `json:"subject"`
	// Reason is a code of docs/protocol.md §6 or §7.2, or panic or error if it could not be
	// handled.
	Reason  string `json:"reason"`
	Detail  string `json:"detail"` // one sentence for a person
	Payload []byte `json:"payload"`
	At      int64  `json:"set_aside_at"` // seconds since the Unix epoch
}

// UnknownKey is the reason for an event of the expected registry that is signed by a key which is
// not trusted. It may be believed once more is trusted.
const UnknownKey = "unknown_registry_key"

// Class is a class of messages that are set aside. The table keeps the same number of each class,
// so a flood of one class doesn't push out another.
type Class int

// The classes.
const (
	Garbage    Class = iota // it is no event under any trust
	Unbelieved              // an event of a registry that is not trusted
	Unhandled               // an event that could not be handled
)

// reasons returns the reasons of a class. Garbage has all others.
func (c Class) reasons() []string {
	switch c {
	case Unbelieved:
		return []string{UnknownKey, string(events.EndedRegistryKey), string(events.WrongOrigin)}
	case Unhandled:
		return []string{consume.Panics, consume.Fails}
	}
	return nil
}

// ClassOf returns the class of a reason.
func ClassOf(reason string) Class {
	for _, c := range []Class{Unbelieved, Unhandled} {
		if slices.Contains(c.reasons(), reason) {
			return c
		}
	}
	return Garbage
}

// KeptSetAside bounds the table: it keeps this many messages of each class, so a flood can't fill
// it.
const KeptSetAside = 1000

func (s *Store) writeSetAside(p *sqldb.Pipeline, setAside []SetAside) {
	if len(setAside) == 0 {
		return
	}
	last := make(map[uint64]SetAside, len(setAside)) // one statement may not touch a row twice
	classes := map[Class]bool{}
	for _, a := range setAside {
		last[a.StreamSequence] = a
		classes[ClassOf(a.Reason)] = true
	}
	args := make([]any, 0, 6*len(last))
	for _, sequence := range slices.Sorted(maps.Keys(last)) {
		a := last[sequence]
		args = append(args, int64(a.StreamSequence), printable.Text(a.Subject), a.Reason, printable.Text(a.Detail), orEmpty(a.Payload), a.At)
	}
	// A stream that was recreated counts from 1 again. The newer message is the one to look at.
	const into = ` INTO set_aside (stream_sequence, subject, reason, detail, payload, set_aside_at) `
	const merge = ` ON CONFLICT (stream_sequence) DO UPDATE SET subject = excluded.subject, reason = excluded.reason,
		detail = excluded.detail, payload = excluded.payload, set_aside_at = excluded.set_aside_at`
	s.insert(p, "messages set aside", into, merge, args, sqldb.Int, sqldb.Text, sqldb.Text, sqldb.Text, sqldb.Bytes, sqldb.Int)
	for _, c := range slices.Sorted(maps.Keys(classes)) {
		in := c.sql()
		p.Exec("trim the messages set aside", `DELETE FROM set_aside WHERE `+in+` AND stream_sequence NOT IN
			(SELECT stream_sequence FROM set_aside WHERE `+in+` ORDER BY set_aside_at DESC, stream_sequence DESC LIMIT $1)`,
			[]any{int64(KeptSetAside)}, nil)
	}
}

// sql is the condition for rows of the class.
func (c Class) sql() string {
	if c == Garbage {
		return `NOT ` + Unbelieved.sql() + ` AND NOT ` + Unhandled.sql()
	}
	return `reason IN ('` + strings.Join(c.reasons(), `', '`) + `')`
}

// RemoveSetAside deletes the messages at these ascending places from what is set aside.
func (s *Store) RemoveSetAside(ctx context.Context, places []uint64) error {
	values := make([]any, len(places))
	for i, place := range places {
		values[i] = int64(place)
	}
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		var p sqldb.Pipeline
		for rows := range s.db.Engine().Rows(1, []sqldb.Type{sqldb.Int}, values) {
			p.Exec("", `DELETE FROM set_aside WHERE stream_sequence IN (`+rows.Query+`)`, rows.Args, nil)
		}
		return tx.Run(ctx, &p)
	})
	if err != nil {
		return fmt.Errorf("take back what was set aside: %w", err)
	}
	return nil
}

// CountSetAside counts the messages that are set aside by reason, and returns the last of their
// places.
func (s *Store) CountSetAside(ctx context.Context) (byReason map[string]int64, upTo uint64, err error) {
	byReason = map[string]int64{}
	const query = `SELECT reason, count(*), max(stream_sequence) FROM set_aside GROUP BY reason`
	var p sqldb.Pipeline
	p.Query("count the messages set aside", query, nil, func(row sqldb.Row) error {
		var (
			reason   string
			n, place int64
		)
		if err := row.Scan(&reason, &n, &place); err != nil {
			return err
		}
		byReason[reason] = n
		upTo = max(upTo, uint64(place))
		return nil
	})
	return byReason, upTo, s.db.Run(ctx, &p)
}

// FailedPlaces returns the places in the stream of the messages that could not be handled.
func (s *Store) FailedPlaces(ctx context.Context) (places []uint64, err error) {
	var p sqldb.Pipeline
	query := `SELECT stream_sequence FROM set_aside WHERE ` + Unhandled.sql() + ` ORDER BY stream_sequence`
	p.Query("list what could not be handled", query, nil, func(row sqldb.Row) error {
		var place int64
		err := row.Scan(&place)
		places = append(places, uint64(place))
		return err
	})
	return places, s.db.Run(ctx, &p)
}

// ListSetAside returns up to limit messages that were set aside, the newest first.
func (s *Store) ListSetAside(ctx context.Context, limit int) ([]SetAside, error) {
	const query = `SELECT stream_sequence, subject, reason, detail, payload, set_aside_at FROM set_aside
		ORDER BY set_aside_at DESC, stream_sequence DESC LIMIT $1`
	var list []SetAside
	err := s.db.Query(ctx, query, []any{int64(limit)}, func(row sqldb.Row) error {
		var a SetAside
		err := row.Scan(&a.StreamSequence, &a.Subject, &a.Reason, &a.Detail, &a.Payload, &a.At)
		list = append(list, a)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the messages set aside: %w", err)
	}
	return list, nil
}

// orEmpty keeps a nil slice from being written as NULL.
func orEmpty(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
