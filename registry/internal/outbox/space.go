package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// Errors of publishing. Committed changes wait in the outbox meanwhile.
var (
	ErrUnpublished = errors.New("committed changes can't be published")
	ErrNoSpace     = errors.New("can't publish: the broker has no space left for events or receipts; give its JetStream more space, or find out what fills it (omi doctor)")
)

const (
	// lackingFor is how long space counts as missing after the last message that didn't fit, unless
	// one fits: waiting messages are tried more often.
	lackingFor = 30 * time.Second
	warnEach   = 10 * time.Second // the log gets one line for all failures in this time
	lookSeldom = time.Minute      // between two looks at the outbox, if a look takes long
	// overdueAfter is how old a row may be before the outbox is reported as stuck. A broker that is
	// there takes far less.
	overdueAfter = 30 * time.Second
)

// space knows whether the broker has room for what the registry publishes.
type space struct {
	log      *slog.Logger
	dropped  prometheus.Counter
	warnings rate.Sometimes

	mu      sync.Mutex
	lacked  map[messageKind]time.Time // when space was last missing
	failed  error                     // why changes were not published at the last try; nil: they were
	tried   time.Time                 // when that was
	refused int                       // refusals that were dropped since the last line in the log
}

// messageKind is a kind of message that is published separately.
type messageKind int

const (
	kindChanges messageKind = iota // events and their receipts
	kindRefusals
)

func newSpace(log *slog.Logger, metrics prometheus.Registerer) *space {
	s := &space{
		log: log, lacked: map[messageKind]time.Time{}, warnings: rate.Sometimes{First: 1, Interval: warnEach},
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omi_registry_unpublished_refusals_total",
			Help: "Refused requests without a receipt because the broker had no space for it, or refused it as it was.",
		}),
	}
	metrics.MustRegister(s.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_cannot_publish",
		Help: "1 while the broker has no space for events or receipts; committed changes wait in the outbox.",
	}, func() float64 {
		if s.err() != nil {
			return 1
		}
		return 0
	}))
	return s
}

// err returns [ErrNoSpace] while the broker has no space.
func (s *space) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.lacked {
		if time.Since(at) < lackingFor {
			return ErrNoSpace
		}
	}
	return nil
}

// unpublished returns why committed changes wait in the outbox: [ErrNoSpace], or [ErrUnpublished]
// with the error of the last try.
func (s *space) unpublished() error {
	if err := s.err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return fmt.Errorf("%w: %w", ErrUnpublished, s.failed)
	}
	return nil
}

// nothingWaits clears an earlier failure: another replica has published the messages.
func (s *space) nothingWaits() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.tried) > ledger.LeaseFor {
		s.failed = nil
	}
}

// record takes the result of a publication.
func (s *space) record(what messageKind, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if what == kindChanges {
		s.failed, s.tried = err, time.Now()
	}
	if err == nil {
		if delete(s.lacked, what); what == kindChanges { // changes have receipts too
			clear(s.lacked)
		}
		return
	}
	lacks := room.Lacks(err)
	if lacks {
		s.lacked[what] = time.Now()
	}
	s.warnings.Do(func() {
		if lacks {
			s.log.Warn("can't publish: the broker has no space left for events or receipts", "error", err, "refusals_dropped", s.refused,
				"do", "give its JetStream more space, or find out what fills it (omi doctor)")
			s.refused = 0
			return
		}
		s.log.Warn("publishing failed, trying again", "error", err)
	})
}

// dropRefusal counts a refusal that gets no receipt. Its sender sends it again.
func (s *space) dropRefusal() {
	s.dropped.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused++
}

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
