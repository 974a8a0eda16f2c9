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
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
)

// remarkWithin limits a check whose result is only a remark, because the client may not wait for
// long.
const remarkWithin = 800 * time.Millisecond

// Parts are what a subscriber needs to apply events and to answer from its database, each with a
// check, for GET /readyz. While the broker is unavailable, it still answers over HTTP: if it were
// taken out of service, no one would answer.
func (s *Subscriber) Parts() []health.Part {
	return []health.Part{
		withoutIt(health.Connection(s.cfg.JetStream.Conn())),
		health.Pinged(s.cfg.Store),
		{Name: health.Consumer, Check: s.checkConsumer},
		{Name: health.Requests, Check: s.inHand.Check},
		{Name: health.CaughtUp, Check: func(context.Context) error { return s.Ready() }},
	}
}

// PartsFromMemory is [Subscriber.Parts] for a process that answers from its memory. It also goes on
// while its database is unavailable. If it were restarted, it could not answer before the database
// is back.
func (s *Subscriber) PartsFromMemory() []health.Part {
	parts := s.Parts()
	for i := range parts {
		switch parts[i].Name {
		case health.Database:
			parts[i] = withoutIt(parts[i])
		case health.Requests:
			parts[i].Check = s.checkInHand
		}
	}
	return parts
}

// withoutIt is a part that a process can do without, unless it can't come back.
func withoutIt(p health.Part) health.Part {
	check := p.Check
	p.Check = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, remarkWithin)
		defer cancel()
		err := check(ctx)
		if errors.Is(err, sqldb.ErrFault) {
			return err
		}
		return health.AsRemark(err)
	}
	return p
}

// checkInHand fails while events hang though the database answers. If the database doesn't answer,
// that is the fault to report.
func (s *Subscriber) checkInHand(ctx context.Context) error {
	err := s.inHand.Check(ctx)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, remarkWithin)
	defer cancel()
	if s.cfg.Store.Ping(ctx) != nil {
		return health.AsRemark(err)
	}
	return err
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
