package subscriber

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
)

// The table of messages set aside is bounded, so a flood of foreign messages can push real ones out
// of it. The stream has them all, and an event that was applied has no second effect. So the stream
// is read again, independently of the durable.

const (
	rereadAtOnce = 1024
	rereadBytes  = 4 << 20
	rereadWithin = 30 * time.Second // for one batch
	// behindTries is how often a broker is asked again if it has less of the stream than its
	// leader.
	behindTries = 50
	behindPause = 200 * time.Millisecond
)

var errBehind = errors.New("the broker does not return messages that the stream has")

// readAgain applies the events from a place on that are believed now. It returns how many of them
// were new, and what must be read again by processes that trust others.
func (s *Subscriber) readAgain(ctx context.Context, from uint64) (applied int, left unbelieved, err error) {
	stream, err := s.cfg.JetStream.Stream(ctx, streams.Invalidations)
	if err != nil {
		return 0, left, err
	}
	last, tries := stream.CachedInfo().State.LastSeq, 0
	for next := from; next <= last; {
		batch, err := s.fetch(ctx, next)
		if err != nil {
			return applied, left, err
		}
		if len(batch) == 0 {
			if tries++; tries > behindTries {
				return applied, left, errBehind
			}
			if err := pause(ctx, behindPause); err != nil {
				return applied, left, err
			}
			continue
		}
		n, u, err := s.applyAgain(ctx, batch)
		if err != nil {
			return applied, left, err
		}
		applied, next, tries = applied+n, lastOf(batch)+1, 0
		if left.from == 0 {
			left = u
		}
	}
	return applied, left, nil
}

// fetch returns the next messages of the stream from a place on.
func (s *Subscriber) fetch(ctx context.Context, from uint64) ([]incoming.Delivery, error) {
	ctx, cancel := context.WithTimeout(ctx, rereadWithin)
	defer cancel()
	list, err := jetstreamext.GetBatch(ctx, s.cfg.JetStream, streams.Invalidations, rereadAtOnce,
		jetstreamext.GetBatchSeq(from), jetstreamext.GetBatchMaxBytes(rereadBytes), jetstreamext.GetBatchSubject(events.InvalidationSubject+">"))
	if err != nil {
		return nil, err
	}
	var batch []incoming.Delivery
	for m, err := range list {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			break
		}
		if err != nil {
			return nil, err
		}
		batch = append(batch, ofStream(m))
	}
	return batch, ctx.Err()
}

func ofStream(m *jetstream.RawStreamMsg) incoming.Delivery {
	return incoming.Delivery{Subject: m.Subject, Payload: m.Data, Sequence: m.Sequence, Published: m.Time}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// applyAgain applies the events of a batch that are believed. If something can't be handled, it
// halves the batch until it finds that message, and sets it aside.
func (s *Subscriber) applyAgain(ctx context.Context, batch []incoming.Delivery) (applied int, left unbelieved, err error) {
	applied, left, err = s.applyOnce(ctx, batch)
	if err == nil || ctx.Err() != nil || sqldb.Transient(err) {
		return applied, left, err
	}
	if len(batch) == 1 {
		s.cfg.Log.ErrorContext(ctx, "message set aside: it can't be handled", "durable", s.cfg.Durable,
			"subject", printable.Text(batch[0].Subject), "stream_sequence", batch[0].Sequence, "error", err)
		s.working.Lock()
		defer s.working.Unlock()
		return 0, unbelieved{}, s.setAsideUnhandled(ctx, batch[0], reasonOf(err), err.Error())
	}
	for half := range slices.Chunk(batch, (len(batch)+1)/2) {
		n, u, err := s.applyAgain(ctx, half)
		if err != nil {
			return applied, left, err
		}
		applied += n
		if left.from == 0 {
			left = u
		}
	}
	return applied, left, nil
}

// panicked is a panic of the code that applies events.
type panicked struct{ value any }

func (p *panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

func reasonOf(err error) string {
	if errors.As(err, new(*panicked)) {
		return consume.Panics
	}
	return consume.Fails
}

func (s *Subscriber) applyOnce(ctx context.Context, batch []incoming.Delivery) (applied int, left unbelieved, err error) {
	s.working.Lock()
	defer s.working.Unlock()
	defer func() {
		if v := recover(); v != nil {
			err = &panicked{v}
		}
	}()
	verified, left := s.verify(batch)
	// The position stays that of the durable, which is further on.
	fresh, err := s.cfg.Store.Apply(ctx, verified.Events, nil)
	if err != nil {
		return 0, left, err
	}
	s.metrics.events.WithLabelValues(resultApplied, "").Add(float64(len(fresh)))
	if err := s.cfg.Applied(ctx, verified.Events, fresh); err != nil {
		return 0, left, err
	}
	return len(fresh), left, s.removeApplied(ctx, batch, verified.Refused)
}

// retryFailed tries the events again that could not be handled: this may be another version, or the
// cause may be gone.
func (s *Subscriber) retryFailed(ctx context.Context) error {
	stream, err := s.cfg.JetStream.Stream(ctx, streams.Invalidations)
	if err != nil {
		return fmt.Errorf("try what could not be handled: %w", err)
	}
	named, _ := announcement{(*s.consumer.Load()).CachedInfo().Config.Metadata}.failed()
	rows, err := s.cfg.Store.FailedPlaces(ctx)
	if err != nil {
		return err
	}
	places := slices.Concat(named, rows)
	slices.Sort(places)
	places = slices.Compact(places)
	if len(places) == 0 {
		return nil
	}
	gone := map[uint64]bool{}
	for _, place := range places {
		m, err := stream.GetMsg(ctx, place)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			gone[place] = true // the stream has dropped it, or is another one
			continue
		}
		if err == nil {
			_, _, err = s.applyAgain(ctx, []incoming.Delivery{ofStream(m)})
		}
		if err != nil {
			return fmt.Errorf("try what could not be handled: %w", err)
		}
	}
	s.working.Lock() // nothing is set aside meanwhile
	defer s.working.Unlock()
	left, err := s.cfg.Store.FailedPlaces(ctx)
	if err != nil {
		return err
	}
	left = slices.DeleteFunc(left, func(place uint64) bool { return gone[place] })
	return s.announce(ctx, func(d announcement) { d.setFailed(left) })
}
