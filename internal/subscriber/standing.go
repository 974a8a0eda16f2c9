package subscriber

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/streams"
)

// ErrPaused means that the durable delivers nothing until a time that an operator gave.
var ErrPaused = errors.New("the durable is paused")

// status is the state of the durable, as the broker reported it last.
type status struct {
	deliveries consume.Deliveries

	mu  sync.Mutex
	err error
}

// DurableErr says why the durable delivers nothing: it or its stream is missing, or it is paused.
// While the broker is unavailable, that is the last known state.
func (s *Subscriber) DurableErr() error {
	s.status.mu.Lock()
	defer s.status.mu.Unlock()
	return s.status.err
}

// checkConsumer fails if no events come although the broker may be there.
func (s *Subscriber) checkConsumer(context.Context) error {
	switch {
	case !s.cfg.JetStream.Conn().IsConnected():
		return nil // another part reports that
	case s.consumer.Load() == nil:
		return fmt.Errorf("the durable %s is not open yet: waiting for the broker or the stream %s", s.cfg.Durable, streams.Invalidations)
	}
	return cmp.Or(s.DurableErr(), s.status.deliveries.Err())
}

// restoreLimits resets the limits of the durable to those with which it was opened, if they were
// changed.
func (s *Subscriber) restoreLimits(ctx context.Context, found jetstream.ConsumerConfig) {
	limits := s.limits.Load()
	if limits == nil || consume.LimitsOf(found) == *limits {
		return
	}
	s.cfg.Log.WarnContext(ctx, "someone changed the limits of the durable; they are reset", "durable", s.cfg.Durable,
		"found", fmt.Sprintf("%+v", consume.LimitsOf(found)))
	s.announcing.Lock() // announce would write the limits that it has read
	defer s.announcing.Unlock()
	consumer, err := s.cfg.JetStream.Consumer(ctx, streams.Invalidations, s.cfg.Durable)
	if err == nil {
		next := s.withOurLimits(consumer.CachedInfo().Config)
		consumer, err = s.update(ctx, next)
	}
	if err == nil { // the broker may have set limits of its own, which stay
		given := consume.LimitsOf(consumer.CachedInfo().Config)
		s.limits.Store(&given)
	}
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "resetting the limits of the durable failed, trying again", "durable", s.cfg.Durable, "error", err)
	}
}

// noteStatus stores the broker's answer about the durable, and logs a change.
func (s *Subscriber) noteStatus(ctx context.Context, info *jetstream.ConsumerInfo, err error) {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		err = fmt.Errorf("the broker has no stream %s; the registry makes it", streams.Invalidations)
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		err = fmt.Errorf("the broker has no durable %s; it is created again", s.cfg.Durable)
	case err != nil:
		return // it says nothing about the durable
	case info.Paused:
		err = fmt.Errorf("%w until %s: nats consumer resume %s %s", ErrPaused, info.Config.PauseUntil.Format(time.RFC3339),
			streams.Invalidations, s.cfg.Durable)
	}
	if info != nil {
		s.status.deliveries.Note(info)
	}
	s.status.mu.Lock()
	before := s.status.err
	s.status.err = err
	s.status.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		s.cfg.Log.WarnContext(ctx, "the durable delivers nothing", "durable", s.cfg.Durable, "error", err)
	case err == nil && before != nil:
		s.cfg.Log.InfoContext(ctx, "the durable delivers again", "durable", s.cfg.Durable)
	}
}
