package subscriber

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/incoming"
)

// AsOf returns the time up to which this subscriber knows the stream, in seconds since the Unix
// epoch, or 0 if it doesn't know that yet. While the broker is unavailable, the time doesn't move.
func (s *Subscriber) AsOf() int64 { return s.asOf.time.Load() }

// asOf is the time up to which every event in the stream was applied.
//
// An applied batch doesn't prove that: a process that crashed may have had an earlier message,
// which comes again later. Only the broker knows what is not acknowledged, so the subscriber asks
// it. If nothing is open, it is the time of the question. On a busy stream something always is, and
// it is the time of the newest message of which the broker says that it and all before it are
// acknowledged.
type asOf struct {
	time atomic.Int64

	mu        sync.Mutex
	latest    incoming.Delivery // the newest message that was applied
	candidate incoming.Delivery // the newest message at an earlier question
}

// askEvery is the precision of as_of, which has whole seconds.
const askEvery = time.Second

// watch asks the broker at once and then every second, until ctx ends. It stops the subscriber if
// another process has the durable.
func (s *Subscriber) watch(ctx context.Context, stop func()) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		if consumer := s.consumer.Load(); consumer != nil {
			if err := s.ask(ctx, *consumer); err != nil {
				s.taken <- err
				stop()
				return
			}
		}
		select {
		case <-s.opened:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ask fails if another process has the durable.
func (s *Subscriber) ask(ctx context.Context, consumer jetstream.Consumer) error {
	ctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	now := s.cfg.Now()
	info, err := consumer.Info(ctx)
	s.noteStatus(ctx, info, err)
	if err != nil {
		return nil // the consumer loop meets the same fault, and logs it
	}
	err = s.stillOurs(info.Config.Metadata)
	if errors.Is(err, ErrInUse) {
		return err
	}
	if err == nil {
		s.restoreLimits(ctx, info.Config)
		if !s.rereading.Load() {
			s.asOf.reply(now, info)
		}
	}
	return nil
}

// restart forgets places in the stream: a recreated stream counts from 1 again.
func (h *asOf) restart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.latest, h.candidate = incoming.Delivery{}, incoming.Delivery{}
}

func (h *asOf) applied(batch []incoming.Delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range batch {
		if d.Sequence > h.latest.Sequence {
			h.latest = incoming.Delivery{Sequence: d.Sequence, Published: d.Published}
		}
	}
}

func (h *asOf) reply(asked time.Time, info *jetstream.ConsumerInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if info.NumPending == 0 && info.NumAckPending == 0 {
		h.raise(asked)
	}
	if h.candidate.Sequence > 0 && h.candidate.Sequence <= info.AckFloor.Stream {
		h.raise(h.candidate.Published)
	}
	if h.candidate.Sequence <= info.AckFloor.Stream {
		h.candidate = h.latest
	}
}

func (h *asOf) raise(t time.Time) { h.time.Store(max(h.time.Load(), t.Unix())) }
