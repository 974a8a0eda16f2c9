package subscriber

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
	"omiappreg.org/keyrotation/schema"
)

// Store is what a subscriber knows, in its database: every key of every service, as rows that are joined by the
// database itself just as [keyring.Keyring.Join] does it. So nothing is read before it is written, and a batch costs
// a handful of statements however large it is.
type Store struct {
	db *sqldb.DB
}

// SetAside is a message that was well-formed and yet not to be applied, kept for an operator to look at.
type SetAside struct {
	StreamSequence uint64 `json:"stream_sequence"`
	Subject        string `json:"subject"`
	Reason         string `json:"reason"` // a code of docs/protocol.md §6 or §7.2; else panic or error: it could not be handled
	Detail         string `json:"detail"` // one sentence for a person
	Payload        []byte `json:"payload"`
	At             int64  `json:"set_aside_at"` // seconds since the Unix epoch
}

// OpenStore opens the database that url names, see [sqldb.Open], and brings its schema up to date.
func OpenStore(ctx context.Context, url string, log *slog.Logger) (*Store, error) {
	db, err := sqldb.Open(ctx, url, log)
	if err != nil {
		return nil, fmt.Errorf("open the subscriber's database: %w", err)
	}
	if err := db.Migrate(ctx, schema.Subscriber()); err != nil {
		_ = db.Close() // the first error says more
		return nil, fmt.Errorf("open the subscriber's database: %w", err)
	}
	return &Store{db: db}, nil
}

// Close closes the database.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the subscriber's database: %w", err)
	}
	return nil
}

// Apply writes the nonces and the effects of a batch of events, and what is set aside, in one transaction, and returns
// the events that had not been applied before, each once.
//
// After an error the batch is to be applied again. If the error is [sqldb.ErrUnknownOutcome], all of it may then turn
// out to have been applied, and nothing is returned as new: whoever keeps the state in memory too must join every event
// of the batch to it, not only the new ones.
func (s *Store) Apply(ctx context.Context, batch []events.Invalidation, aside []SetAside) ([]events.Invalidation, error) {
	if len(batch) == 0 && len(aside) == 0 {
		return nil, nil
	}
	var fresh []events.Invalidation
	err := s.db.InTx(ctx, func(tx *sql.Tx) (err error) {
		if fresh, err = s.claim(ctx, tx, batch); err != nil {
			return err
		}
		if err := s.writeEvents(ctx, tx, fresh); err != nil {
			return err
		}
		return s.writeAside(ctx, tx, aside)
	})
	if err != nil {
		return nil, fmt.Errorf("apply a batch of events: %w", err)
	}
	return fresh, nil
}

// claim writes the nonces of a batch, and returns the events whose nonce was not there, each once.
func (s *Store) claim(ctx context.Context, tx *sql.Tx, batch []events.Invalidation) ([]events.Invalidation, error) {
	const into = `INSERT INTO applied (nonce) VALUES `
	const returning = ` ON CONFLICT (nonce) DO NOTHING RETURNING nonce`
	claimed := make(map[string]struct{}, len(batch))
	for _, e := range batch {
		claimed[e.Nonce.String()] = struct{}{}
	}
	nonces := slices.Sorted(maps.Keys(claimed)) // sorted, as all rows here: two writers lock them in one order
	clear(claimed)
	for chunk := range slices.Chunk(nonces, sqldb.MaxParams) {
		args := make([]any, len(chunk))
		for i, nonce := range chunk {
			args[i] = nonce
		}
		text := into + s.db.Engine().Values(1, len(chunk), sqldb.Text) + returning
		if err := scanNonces(ctx, tx, claimed, text, args); err != nil {
			return nil, fmt.Errorf("claim the nonces: %w", err)
		}
	}
	fresh := make([]events.Invalidation, 0, len(claimed))
	for _, e := range batch {
		if _, ok := claimed[e.Nonce.String()]; ok {
			delete(claimed, e.Nonce.String())
			fresh = append(fresh, e)
		}
	}
	return fresh, nil
}

func scanNonces(ctx context.Context, tx *sql.Tx, into map[string]struct{}, text string, args []any) error {
	rows, err := tx.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var nonce string
		if err := rows.Scan(&nonce); err != nil {
			return err
		}
		into[nonce] = struct{}{}
	}
	return rows.Err()
}

// writeEvents writes the effects of events that were not applied before.
func (s *Store) writeEvents(ctx context.Context, tx *sql.Tx, fresh []events.Invalidation) error {
	if len(fresh) == 0 {
		return nil
	}
	var effects rows
	for i := range fresh {
		effects.add(fresh[i].Target.String(), keyring.Of(&fresh[i]))
	}
	if err := s.writeKeyrings(ctx, tx, &effects); err != nil {
		return err
	}
	args := make([]any, 0, 3*len(fresh))
	for i := range fresh {
		args = append(args, fresh[i].Target.String(), keyring.Order(&fresh[i]), fresh[i].Sequence)
	}
	// An event that the registry's history already stands in for is not counted: see services in the schema.
	const into = `INSERT INTO services (target, head, max_sequence, filled, sequenced)
		SELECT v.column1, max(v.column2), max(v.column3), 0,
			count(CASE WHEN v.column3 > COALESCE(s.filled, 0) THEN 1 END)
		FROM (VALUES `
	const merge = `) AS v LEFT JOIN services AS s ON s.target = v.column1
		WHERE true GROUP BY v.column1 ORDER BY v.column1
		ON CONFLICT (target) DO UPDATE SET
			head = CASE WHEN excluded.head > services.head THEN excluded.head ELSE services.head END,
			max_sequence = CASE WHEN excluded.max_sequence > services.max_sequence
				THEN excluded.max_sequence ELSE services.max_sequence END,
			sequenced = services.sequenced + excluded.sequenced`
	return s.insert(ctx, tx, "services", into, merge, args, sqldb.Text, sqldb.Int, sqldb.Int)
}

// Fill joins the registry's own account of a service, [keyring.OfHistory], which closes the gap in its events. An
// account that is older than an event of the service closes nothing: the gap may lie between the two.
func (s *Store) Fill(ctx context.Context, target events.Target, history keyring.Keyring) error {
	var effects rows
	effects.add(target.String(), history)
	const into = `INSERT INTO services (target, head, max_sequence, filled, sequenced) VALUES `
	const merge = ` ON CONFLICT (target) DO UPDATE SET
			head = CASE WHEN excluded.head > services.head THEN excluded.head ELSE services.head END,
			max_sequence = CASE WHEN excluded.max_sequence > services.max_sequence
				THEN excluded.max_sequence ELSE services.max_sequence END,
			filled = CASE WHEN excluded.filled >= services.max_sequence THEN excluded.filled ELSE services.filled END,
			sequenced = CASE WHEN excluded.filled >= services.max_sequence THEN 0 ELSE services.sequenced END`
	args := []any{target.String(), history.Head, history.Head, history.Head, int64(0)}
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		if err := s.writeKeyrings(ctx, tx, &effects); err != nil {
			return err
		}
		return s.insert(ctx, tx, "services", into, merge, args, sqldb.Text, sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Int)
	})
	if err != nil {
		return fmt.Errorf("fill the history of %s: %w", target, err)
	}
	return nil
}

// keptAside bounds the table, whoever floods the stream.
const keptAside = 1000

func (s *Store) writeAside(ctx context.Context, tx *sql.Tx, aside []SetAside) error {
	if len(aside) == 0 {
		return nil
	}
	last := make(map[uint64]SetAside, len(aside)) // one statement may not touch a row twice
	for _, a := range aside {
		last[a.StreamSequence] = a
	}
	args := make([]any, 0, 6*len(last))
	for _, sequence := range slices.Sorted(maps.Keys(last)) {
		a := last[sequence]
		args = append(args, int64(a.StreamSequence), incoming.Printable(a.Subject), a.Reason, incoming.Printable(a.Detail), orEmpty(a.Payload), a.At)
	}
	// A stream that was made anew counts from 1 again: the newer message is the one to look at.
	const into = `INSERT INTO set_aside (stream_sequence, subject, reason, detail, payload, set_aside_at) VALUES `
	const merge = ` ON CONFLICT (stream_sequence) DO UPDATE SET subject = excluded.subject, reason = excluded.reason,
		detail = excluded.detail, payload = excluded.payload, set_aside_at = excluded.set_aside_at`
	if err := s.insert(ctx, tx, "messages set aside", into, merge, args,
		sqldb.Int, sqldb.Text, sqldb.Text, sqldb.Text, sqldb.Bytes, sqldb.Int); err != nil {
		return err
	}
	const trim = `DELETE FROM set_aside WHERE stream_sequence NOT IN
		(SELECT stream_sequence FROM set_aside ORDER BY set_aside_at DESC, stream_sequence DESC LIMIT $1)`
	if _, err := tx.ExecContext(ctx, trim, int64(keptAside)); err != nil {
		return fmt.Errorf("trim the messages set aside: %w", err)
	}
	return nil
}

// insert writes rows, given as their columns one after the other, in as few statements as the engines allow.
func (s *Store) insert(ctx context.Context, tx *sql.Tx, what, into, merge string, args []any, columns ...sqldb.Type) error {
	width := len(columns)
	for chunk := range slices.Chunk(args, min(sqldb.MaxRows, sqldb.MaxParams/width)*width) {
		text := into + s.db.Engine().Values(1, len(chunk)/width, columns...) + merge
		if _, err := tx.ExecContext(ctx, text, chunk...); err != nil {
			return fmt.Errorf("write the %s: %w", what, err)
		}
	}
	return nil
}

// orEmpty keeps a nil slice from being written as NULL.
func orEmpty(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
