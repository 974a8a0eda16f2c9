package outbox

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

const (
	lookSeldom = time.Minute // between two looks at the outbox, if a look takes long
	// overdueAfter is how old a row may be before the outbox is reported as stuck. A broker that is
	// there takes far less.
	overdueAfter = 30 * time.Second
)

// backlog is what waits in the outbox, as the last look found it.
type backlog struct {
	outbox     *ledger.Outbox
	unsendable *unsendable
	now        func() time.Time
	overdue    time.Duration

	looking sync.Mutex
	mu      sync.Mutex
	due     time.Time // the next look
	rows    int
	oldest  time.Time // when it was committed; zero: there is none
}

func newBacklog(cfg Config, u *unsendable) *backlog {
	b := &backlog{outbox: cfg.Outbox, unsendable: u, now: cfg.Now, overdue: cmp.Or(cfg.Overdue, overdueAfter)}
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
	var skip func(decision.OutboxPlace) bool
	if b.unsendable.count() > 0 {
		skip = b.unsendable.has
	}
	rows, oldest, err := b.outbox.Backlog(ctx, skip)
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
	b.due = time.Now().Add(min(max(10*time.Since(began), pause), lookSeldom))
	return nil
}
