package subscriber

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
)

// Trust is whose messages the subscriber believes now.
func (s *Subscriber) Trust() events.Trust { return *s.trust.Load() }

// SetTrust changes whose messages are believed, soon. With more trust, the subscriber first applies
// what it had set aside, and then says that it trusts more. With less trust, it says so first.
// Events that were applied stay applied.
func (s *Subscriber) SetTrust(trust events.Trust) {
	s.wanted.Store(&trust)
	s.wake()
}

func (s *Subscriber) wake() {
	select {
	case s.woken <- struct{}{}:
	default: // it will look anyway
	}
}

const (
	keepEvery = time.Second
	// remindEvery is the pause between two reports of an error that lasts.
	remindEvery = time.Minute
)

// followTrust makes the durable say whom this process trusts, and reads the stream again if more of
// it is believed now, until ctx ends.
func (s *Subscriber) followTrust(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	retried, told := false, time.Time{}
	for {
		err := errors.Join(s.countSetAside(ctx), s.useTrust(ctx))
		if consumer := s.consumer.Load(); err == nil && consumer != nil {
			if !retried {
				retried = true
				err = s.retryFailed(ctx)
			}
			err = errors.Join(err, s.rereadBelieved(ctx))
		}
		s.rereading.Store(false) // a failed attempt must not stop as_of for good
		if err != nil && ctx.Err() == nil && time.Since(told) > remindEvery {
			told = time.Now()
			s.cfg.Log.WarnContext(ctx, "what was set aside can't be looked after, trying again", "durable", s.cfg.Durable, "error", err)
		}
		select {
		case <-s.woken:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// useTrust starts to use the wanted trust. If that is less in some, the durable says so before.
func (s *Subscriber) useTrust(ctx context.Context) error {
	wanted, now := s.wanted.Load(), s.trust.Load()
	if wanted == now {
		return nil
	}
	own := wanted.Announcement()
	if s.consumer.Load() != nil {
		err := s.announce(ctx, func(d announcement) { d.narrow(own) })
		// A new durable says it before anything is read from it.
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
	}
	s.working.Lock()
	s.trust.Store(wanted)
	s.working.Unlock()
	s.cfg.Log.InfoContext(ctx, "trusting other registry keys from now on", "durable", s.cfg.Durable, "trusted", own)
	return nil
}

// rereadBelieved reads again what this trust may believe, and then makes the durable say whom it
// trusts.
func (s *Subscriber) rereadBelieved(ctx context.Context) error {
	own := s.Trust().Announcement()
	info, err := (*s.consumer.Load()).Info(ctx)
	if err != nil {
		return fmt.Errorf("read what the durable %s says: %w", s.cfg.Durable, err)
	}
	d := announcement{info.Config.Metadata}
	if !d.mustReread(own) {
		if words, _ := d.trusts(); len(common(own, words)) == len(own) {
			return nil
		}
		return s.announce(ctx, func(d announcement) { d.widen(own) })
	}
	s.rereading.Store(true)
	// Events that this process or others set aside from here on are noted separately.
	var from uint64
	err = s.announce(ctx, func(d announcement) {
		d.add(rereadMetadata, d.unbelieved(unbelievedMetadata))
		delete(d.metadata, unbelievedMetadata)
		from = d.unbelieved(rereadMetadata).from
	})
	if err != nil || from == 0 {
		return err
	}
	s.cfg.Log.InfoContext(ctx, "more is trusted than when messages were set aside: reading the stream again from there",
		"durable", s.cfg.Durable, "from", from)
	applied, left, err := s.readAgain(ctx, from)
	if err != nil {
		return fmt.Errorf("read the stream again from %d, for what was set aside: %w", from, err)
	}
	s.cfg.Log.InfoContext(ctx, "what was set aside and is believed now is applied", "durable", s.cfg.Durable, "events", applied)
	return s.announce(ctx, func(d announcement) {
		delete(d.metadata, rereadMetadata)
		d.add(unbelievedMetadata, left)
		d.widen(own)
	})
}
