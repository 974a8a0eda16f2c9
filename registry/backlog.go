package registry

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

const (
	outboxSeldom = time.Minute // between two looks at the outbox, if a look takes long
	// outboxAtMost is how many rows a look counts. Rows lie in the order of their commits' random
	// numbers, so the oldest of so many is about as old as the oldest of all.
	outboxAtMost = 10_000
	// overdueAfter is how old a row may be before the outbox is reported as stuck. A broker that is
	// there takes far less.
	overdueAfter = 30 * time.Second
)

// backlog is what waits in the outbox, as the last look found it.
type backlog struct {
	store   *Store
	passed  *unsendable
	now     func() time.Time
	overdue time.Duration

	looking sync.Mutex
	mu      sync.Mutex
	due     time.Time // the next look
	rows    int
	oldest  time.Time // when it was committed; zero: there is none
}

func newBacklog(cfg relayConfig, passed *unsendable) *backlog {
	b := &backlog{store: cfg.Store, passed: passed, now: cfg.Now, overdue: cmp.Or(cfg.Overdue, overdueAfter)}
	cfg.Metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "omi_registry_outbox_rows",
			Help: "Changes in the outbox that are not published yet; 10000 means that many or more.",
		}, func() float64 {
			b.mu.Lock()
			defer b.mu.Unlock()
			return float64(b.rows)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "omi_registry_outbox_oldest_seconds",
			Help: "Age of the oldest change in the outbox, not counting those that can't be sent as they are; 0: there is none.",
		}, func() float64 { return b.age().Seconds() }),
	)
	return b
}

// age is the age of the oldest row.
func (b *backlog) age() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.oldest.IsZero() {
		return 0
	}
	return max(0, b.now().Sub(b.oldest))
}

// check looks if a look is due. It returns the age of the oldest row if that row is overdue.
func (b *backlog) check(ctx context.Context) (late time.Duration, err error) {
	b.looking.Lock()
	defer b.looking.Unlock()
	b.mu.Lock()
	due := !time.Now().Before(b.due)
	b.mu.Unlock()
	if due {
		if err := b.look(ctx); err != nil {
			return 0, err
		}
	}
	if age := b.age(); age >= b.overdue {
		return age, nil
	}
	return 0, nil
}

func (b *backlog) look(ctx context.Context) error {
	began := time.Now()
	rows, oldest, err := b.store.backlog(ctx, b.passed)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows, b.oldest = rows, oldest
	pause := b.overdue / 3
	if !oldest.IsZero() { // so that it is soon seen to be gone
		pause /= 10
	}
	b.due = time.Now().Add(min(max(10*time.Since(began), pause), outboxSeldom))
	return nil
}

// backlog returns how many changes are in the outbox, outboxAtMost at most, and when the oldest one
// that is not passed over was committed.
func (s *Store) backlog(ctx context.Context, passed *unsendable) (rows int, oldest time.Time, err error) {
	const some = "SELECT batch, position FROM outbox LIMIT $1"
	var first sql.NullInt64
	if passed.count() == 0 {
		err = s.db.QueryRow(ctx, "SELECT COUNT(*), MIN(position) FROM ("+some+") AS waiting", outboxAtMost).Scan(&rows, &first)
	} else {
		err = s.each(ctx, some, []any{outboxAtMost}, func(row sqldb.Row) error {
			var place decision.OutboxPlace
			err := row.Scan(&place.Batch, &place.Position)
			if rows++; !passed.has(place) && (!first.Valid || place.Position < first.Int64) {
				first = sql.NullInt64{Int64: place.Position, Valid: true}
			}
			return err
		})
	}
	if err != nil {
		return 0, oldest, fmt.Errorf("look at the outbox: %w", err)
	}
	if first.Valid {
		oldest = time.Unix(0, first.Int64)
	}
	return rows, oldest, nil
}
