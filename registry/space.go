package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/internal/room"
)

// ErrUnpublished means that what is committed can't be announced. It waits in the outbox.
var ErrUnpublished = errors.New("committed changes can't be published")

// ErrNoSpace means that the broker takes no more events or receipts, since it has no space left.
// Committed changes wait in the outbox.
var ErrNoSpace = errors.New("can't publish: the broker has no space left for events or receipts; give its JetStream more, or look at what fills it (omi doctor)")

const (
	lackingFor = 30 * time.Second // after the last message that didn't fit, unless one does: what waits is tried more often
	warnEach   = 10 * time.Second // one line of the log for all that fails in that time
)

// space knows whether the broker has room for what the registry has to say.
type space struct {
	log      *slog.Logger
	dropped  prometheus.Counter
	warnings rate.Sometimes

	mu      sync.Mutex
	lacked  map[saying]time.Time // when it lacked last
	failed  failure              // of changes, at the last try
	refused int                  // refusals that were dropped since the log was told
}

// failure is why something could not be published, and when; zero: it could.
type failure struct {
	err error
	at  time.Time
}

// saying is what is published on a way of its own.
type saying int

const (
	sayChanges saying = iota // events and their receipts
	sayRefusals
)

func newSpace(log *slog.Logger, metrics prometheus.Registerer) *space {
	s := &space{
		log: log, lacked: map[saying]time.Time{}, warnings: rate.Sometimes{First: 1, Interval: warnEach},
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omi_registry_unpublished_refusals_total",
			Help: "Requests that were refused and got no receipt, since the broker had no space for it, or refused it as it was.",
		}),
	}
	metrics.MustRegister(s.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_cannot_publish",
		Help: "1 while the broker has no space for events or receipts; what is committed waits in the outbox.",
	}, func() float64 {
		if s.err() != nil {
			return 1
		}
		return 0
	}))
	return s
}

// err returns [ErrNoSpace] while there is none.
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

// unpublished returns why committed changes wait in the outbox: [ErrNoSpace], or [ErrUnpublished] with what the last try met.
func (s *space) unpublished() error {
	if err := s.err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed.err != nil {
		return fmt.Errorf("%w: %w", ErrUnpublished, s.failed.err)
	}
	return nil
}

// nothingWaits takes back a failure of a while ago: another replica has published what it was about.
func (s *space) nothingWaits() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.failed.at) > leaseFor {
		s.failed = failure{}
	}
}

// note takes in what became of a publication.
func (s *space) note(what saying, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if what == sayChanges {
		s.failed = failure{err, time.Now()}
	}
	if err == nil {
		if delete(s.lacked, what); what == sayChanges { // which have receipts too
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
				"do", "give its JetStream more, or look at what fills it (omi doctor)")
			s.refused = 0
			return
		}
		s.log.Warn("publishing failed, it will be tried again", "error", err)
	})
}

// drop counts a refusal that gets no receipt. Its sender sends it again.
func (s *space) drop() {
	s.dropped.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused++
}
