package registry

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/internal/room"
)

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
	refused int                  // refusals that were dropped since the log was told
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
			Help: "Requests that were refused and got no receipt, since the broker had no space for it.",
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

// note takes in what became of a publication.
func (s *space) note(what saying, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
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
