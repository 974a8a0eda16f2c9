package subscriber

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// The durable remembers what was acknowledged. The database remembers what was applied, in the
// transaction with its effects and before the acknowledgement. So if the durable is ahead, another
// database applied it: this database is new, or was restored from an older backup. Then the durable
// is recreated, and the stream read from its start. Events that the database has take no effect
// again.

// recreateIfAhead recreates the durable if the database lacks events that it has acknowledged.
// before is the state in which it was found.
func (s *Subscriber) recreateIfAhead(
	ctx context.Context, stream jetstream.Stream, consumer jetstream.Consumer, before *jetstream.ConsumerInfo, want jetstream.ConsumerConfig,
) (jetstream.Consumer, error) {
	info := consumer.CachedInfo()
	if info.AckFloor.Consumer == 0 {
		// Nothing was acknowledged: even a new durable has a floor, just before the first message.
		return consumer, nil
	}
	created := stream.CachedInfo().Created.UnixNano()
	applied, known, err := s.cfg.Store.Position(ctx, created)
	if err != nil {
		return nil, err
	}
	if known && !s.otherDatabase(before.Config.Metadata) {
		if same, err := nothingBetween(ctx, stream, applied, info.AckFloor.Stream); err != nil || same {
			return consumer, err
		}
	}
	s.cfg.Log.WarnContext(ctx, "the durable has acknowledged what this database does not have: the database is new, or was restored from an older backup. "+
		"The durable is recreated, and the stream read from its start",
		"durable", s.cfg.Durable, "acknowledged", info.AckFloor.Stream, "in_database", applied)
	return s.recreate(ctx, want)
}

// recreate recreates the durable, so that the stream is read from its start.
func (s *Subscriber) recreate(ctx context.Context, want jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	if err := s.deleteDurable(ctx); err != nil {
		return nil, err
	}
	return s.create(ctx, want)
}

// nothingBetween says whether the stream has no message after applied and up to the floor. If the
// stream has dropped messages, the floor is not the last acknowledged one: it lies just before the
// next message to be delivered.
func nothingBetween(ctx context.Context, stream jetstream.Stream, applied, floor uint64) (bool, error) {
	if applied >= floor {
		return true, nil
	}
	next, err := stream.GetMsg(ctx, applied+1, jetstream.WithGetMsgSubject(events.InvalidationSubject+">"))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for messages that the database lacks: %w", err)
	}
	return next.Sequence > floor, nil
}

func (s *Subscriber) deleteDurable(ctx context.Context) error {
	err := s.cfg.JetStream.DeleteConsumer(ctx, streams.Invalidations, s.cfg.Durable)
	// A process that shares the durable may have been quicker.
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete the durable %s: %w", s.cfg.Durable, err)
	}
	return nil
}
