package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// ErrNoDeadLetter means that no dead letter has this id: it never existed, or it is decided by now.
var ErrNoDeadLetter = errors.New("there is no dead letter with this id")

// DeadLetter is a request that could not be decided. The registry's type of this name explains the
// fields.
type DeadLetter struct {
	ID, Subject               string
	StreamSequence            uint64
	StreamCreatedAt, StoredAt int64
	Reason, Detail            string
	Tries                     int
	SetAsideAt                int64
	Retrying                  bool
	Payload                   []byte
}

// Put keeps a dead letter. If it is there already, it has failed again.
func (s *Letters) Put(ctx context.Context, l DeadLetter) error {
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO dead_letters
			(id, stream_sequence, stored_at, reason, detail, tries, set_aside_at, subject, payload, stream_created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
			ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, detail = excluded.detail,
			tries = dead_letters.tries + excluded.tries, set_aside_at = excluded.set_aside_at, retry_at = NULL`,
			l.ID, int64(l.StreamSequence), l.StoredAt, l.Reason, l.Detail, l.Tries, l.SetAsideAt, l.Subject, append([]byte{}, l.Payload...),
			l.StreamCreatedAt)
		return err
	})
	if err != nil {
		return fmt.Errorf("keep a dead letter: %w", err)
	}
	return nil
}

// letterColumns are what scanLetter reads.
const letterColumns = "id, stream_sequence, stored_at, reason, detail, tries, set_aside_at, retry_at, subject, stream_created_at"

func scanLetter(row interface{ Scan(...any) error }, more ...any) (DeadLetter, error) {
	var l DeadLetter
	var retry sql.NullInt64
	err := row.Scan(append([]any{
		&l.ID, &l.StreamSequence, &l.StoredAt, &l.Reason, &l.Detail, &l.Tries, &l.SetAsideAt, &retry, &l.Subject,
		&l.StreamCreatedAt,
	}, more...)...)
	l.Retrying = retry.Valid
	return l, err
}

// List returns up to limit dead letters, the oldest first, without their payloads.
func (s *Letters) List(ctx context.Context, limit int) ([]DeadLetter, error) {
	list := []DeadLetter{}
	err := s.each(ctx, "SELECT "+letterColumns+" FROM dead_letters ORDER BY stored_at, stream_sequence LIMIT $1", []any{limit},
		func(row sqldb.Row) error {
			l, err := scanLetter(row)
			list = append(list, l)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("list the dead letters: %w", err)
	}
	return list, nil
}

// Get returns one dead letter with its payload, or [ErrNoDeadLetter].
func (s *Letters) Get(ctx context.Context, id string) (DeadLetter, error) {
	var payload []byte
	l, err := scanLetter(s.db.QueryRow(ctx,
		"SELECT "+letterColumns+", payload FROM dead_letters WHERE id = $1", id), &payload)
	if errors.Is(err, sql.ErrNoRows) {
		return l, fmt.Errorf("dead letter %s: %w", id, ErrNoDeadLetter)
	}
	if err != nil {
		return l, fmt.Errorf("read dead letter %s: %w", id, err)
	}
	l.Payload = payload
	return l, nil
}

// Count returns how many there are.
func (s *Letters) Count(ctx context.Context) (n int, err error) {
	if err = s.db.QueryRow(ctx, "SELECT COUNT(*) FROM dead_letters").Scan(&n); err != nil {
		return 0, fmt.Errorf("count the dead letters: %w", err)
	}
	return n, nil
}

// Retry asks for dead letters to be decided again: all of them, or [ErrNoDeadLetter].
func (s *Letters) Retry(ctx context.Context, ids []string, now time.Time) error {
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		for _, id := range ids {
			changed, err := tx.Exec(ctx, "UPDATE dead_letters SET retry_at = COALESCE(retry_at, $1) WHERE id = $2", now.UnixMilli(), id)
			if err != nil {
				return err
			}
			if changed == 0 {
				return fmt.Errorf("dead letter %s: %w", id, ErrNoDeadLetter)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ask for a retry: %w", err)
	}
	return nil
}

// RetryAll asks for all dead letters to be decided again, and returns their ids, oldest first.
func (s *Letters) RetryAll(ctx context.Context, now time.Time) ([]string, error) {
	letters, err := s.update(ctx, `UPDATE dead_letters SET retry_at = COALESCE(retry_at, $1)
		RETURNING `+letterColumns+`, NULL`, now.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("ask for a retry of all dead letters: %w", err)
	}
	ids := make([]string, 0, len(letters))
	for _, l := range letters {
		ids = append(ids, l.ID)
	}
	return ids, nil
}

// Asked reports whether a dead letter is to be decided again. It is a read, which costs little
// while there is none.
func (s *Letters) Asked(ctx context.Context, now time.Time) (bool, error) {
	var n int
	err := s.db.QueryRow(ctx, "SELECT COUNT(*) FROM dead_letters WHERE retry_at <= $1", now.UnixMilli()).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for dead letters to retry: %w", err)
	}
	return n > 0, nil
}

// Claim leases up to limit dead letters that are to be decided again, oldest first. Two
// replicas never lease the same one at a time, though deciding one twice would do no harm.
func (s *Letters) Claim(ctx context.Context, limit int, now time.Time, lease time.Duration) ([]DeadLetter, error) {
	letters, err := s.update(ctx, `UPDATE dead_letters SET retry_at = $1 WHERE id IN
		(SELECT id FROM dead_letters WHERE retry_at <= $2 ORDER BY stored_at, stream_sequence LIMIT $3)
		RETURNING `+letterColumns+`, payload`, now.Add(lease).UnixMilli(), now.UnixMilli(), limit)
	if err != nil {
		return nil, fmt.Errorf("claim dead letters: %w", err)
	}
	return letters, nil
}

// update runs a statement that returns dead letters, and sorts them, oldest first.
func (s *Letters) update(ctx context.Context, statement string, args ...any) ([]DeadLetter, error) {
	var letters []DeadLetter
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		letters = letters[:0]
		var p sqldb.Pipeline
		p.Query("update", statement, args, func(row sqldb.Row) error {
			var payload []byte
			l, err := scanLetter(row, &payload)
			l.Payload = payload
			letters = append(letters, l)
			return err
		})
		return tx.Run(ctx, &p)
	})
	slices.SortFunc(letters, func(a, b DeadLetter) int {
		return cmp.Or(cmp.Compare(a.StoredAt, b.StoredAt), cmp.Compare(a.StreamSequence, b.StreamSequence))
	})
	return letters, err
}

// Delete deletes a dead letter that is decided.
func (s *Letters) Delete(ctx context.Context, id string) error {
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, "DELETE FROM dead_letters WHERE id = $1", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete a decided dead letter: %w", err)
	}
	return nil
}
