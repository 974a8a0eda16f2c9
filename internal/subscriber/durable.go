package subscriber

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/streams"
)

// ErrDurable means that the durable exists and is not a subscriber's: it would miss events, or
// share them with others. An operator must look, and delete it or choose another name.
var ErrDurable = errors.New("the durable consumer exists, and is not one that delivers every invalidation and waits for acknowledgements")

// streamPoll is the pause between two looks for a stream that isn't there yet.
const streamPoll = 250 * time.Millisecond

// open finds or creates the durable. It waits for the stream if need be.
func (s *Subscriber) open(ctx context.Context) (jetstream.Consumer, error) {
	stream, err := s.awaitStream(ctx)
	if err != nil {
		return nil, err
	}
	if created := stream.CachedInfo().Created.UnixNano(); created != s.created {
		s.created, s.written = created, storage.Place{}
	}
	if err := s.acquire(ctx); err != nil {
		return nil, err
	}
	consumer, err := s.ensureDurable(ctx, stream)
	if err == nil {
		err = s.announceTrust(ctx)
	}
	if err != nil {
		if !s.owned {
			s.release()
		}
		return nil, fmt.Errorf("open the durable %s: %w", s.cfg.Durable, err)
	}
	s.owned = true
	s.asOf.restart()
	limits := consume.LimitsOf(consumer.CachedInfo().Config)
	s.limits.Store(&limits)
	s.consumer.Store(&consumer)
	s.wake()
	select {
	case s.opened <- struct{}{}:
	default: // watch has not seen the last one yet
	}
	return consumer, nil
}

// config is the configuration that the durable must have.
func (s *Subscriber) config() jetstream.ConsumerConfig {
	want := streams.SubscriberConsumer(s.cfg.Durable)
	want.InactiveThreshold, want.Metadata = s.cfg.ForgetAfter, s.metadata()
	return want
}

// ensureDurable creates the durable, or writes into the existing one that it is ours.
func (s *Subscriber) ensureDurable(ctx context.Context, stream jetstream.Stream) (jetstream.Consumer, error) {
	want := s.config()
	consumer, err := s.cfg.JetStream.Consumer(ctx, streams.Invalidations, s.cfg.Durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return s.create(ctx, want) // fails if another process was quicker
	case errors.Is(err, jetstream.ErrNotPullConsumer):
		return nil, fmt.Errorf("%w: it pushes", ErrDurable)
	case err != nil:
		return nil, err
	}
	before := consumer.CachedInfo()
	if s.owned { // another process may have taken it while we were away
		if err := s.stillOurs(before.Config.Metadata); err != nil {
			return nil, err
		}
	}
	if consumer, err = s.reconcile(ctx, consumer, want); err != nil {
		return nil, err
	}
	if few := before.Config.MaxWaiting; few > 0 && few < consume.LeastWaiting {
		s.cfg.Log.WarnContext(ctx, "the durable allows too few pulls at a time, which can't be changed: it is recreated, and the stream read from its start",
			"durable", s.cfg.Durable, "max_waiting", few)
		return s.recreate(ctx, want)
	}
	// Another process may have created it meanwhile, and may have heard of events.
	if !consumer.CachedInfo().Created.Equal(before.Created) {
		return s.recreate(ctx, want)
	}
	return s.recreateIfAhead(ctx, stream, consumer, before, want)
}

func (s *Subscriber) create(ctx context.Context, want jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	return consume.Put(ctx, want, func(cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
		return s.cfg.JetStream.CreateConsumer(ctx, streams.Invalidations, cfg)
	})
}

func (s *Subscriber) awaitStream(ctx context.Context) (jetstream.Stream, error) {
	tick := time.NewTicker(streamPoll)
	defer tick.Stop()
	for waiting := false; ; {
		stream, err := s.cfg.JetStream.Stream(ctx, streams.Invalidations)
		if err == nil {
			return stream, nil
		}
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, fmt.Errorf("look for the stream %s: %w", streams.Invalidations, err)
		}
		if !waiting {
			waiting = true
			const message = "waiting for the stream " + streams.Invalidations + "; the registry makes it"
			s.cfg.Log.InfoContext(ctx, message)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the stream %s: %w", streams.Invalidations, ctx.Err())
		}
	}
}

// reconcile refuses a durable of another kind. In one of ours it sets the limits and the owner, and
// keeps what an operator may have chosen (replicas, other metadata).
func (s *Subscriber) reconcile(ctx context.Context, consumer jetstream.Consumer, want jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	have := consumer.CachedInfo().Config
	switch {
	case have.DeliverPolicy != want.DeliverPolicy:
		return nil, fmt.Errorf("%w: its deliver policy is %s", ErrDurable, have.DeliverPolicy)
	case have.AckPolicy != want.AckPolicy:
		return nil, fmt.Errorf("%w: its acknowledge policy is %s", ErrDurable, have.AckPolicy)
	case have.FilterSubject != want.FilterSubject || len(have.FilterSubjects) > 0:
		return nil, fmt.Errorf("%w: it filters by subject", ErrDurable)
	case have.HeadersOnly:
		return nil, fmt.Errorf("%w: it delivers headers only", ErrDurable)
	}
	next := s.withOurLimits(have)
	next.Metadata = s.withMetadata(have.Metadata)
	if reflect.DeepEqual(next, have) {
		return consumer, nil
	}
	s.cfg.Log.InfoContext(ctx, "setting the limits and the owner of the durable consumer", "durable", s.cfg.Durable)
	updated, err := s.update(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("set its limits and its owner: %w", err)
	}
	return updated, nil
}

// withOurLimits returns the configuration of a durable with the limits that it must have. If we set
// none, the broker may set its own again.
func (s *Subscriber) withOurLimits(next jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	want := s.config()
	next.AckWait, next.BackOff, next.MaxDeliver, next.MaxAckPending = want.AckWait, nil, want.MaxDeliver, want.MaxAckPending
	next.InactiveThreshold = want.InactiveThreshold
	next.MaxRequestBatch, next.MaxRequestExpires, next.MaxRequestMaxBytes = 0, 0, 0
	return next
}

func (s *Subscriber) update(ctx context.Context, next jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	return consume.Put(ctx, next, func(cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
		return s.cfg.JetStream.UpdateConsumer(ctx, streams.Invalidations, cfg)
	})
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
