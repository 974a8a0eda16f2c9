package subscriber

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/streams"
)

// The durable remembers what was acknowledged, the database what was settled, in the transaction with its effects and
// before it was acknowledged. So if the durable is ahead, it was another database that settled it: this one is new, or
// was restored from an older backup. The durable is then made anew, and the stream read from its start; what the database
// has already takes effect no second time.

// adopt makes the durable anew if the database has not what it has acknowledged. before is how it was found.
func (s *Subscriber) adopt(
	ctx context.Context, stream jetstream.Stream, consumer jetstream.Consumer, before *jetstream.ConsumerInfo, want jetstream.ConsumerConfig,
) (jetstream.Consumer, error) {
	info := consumer.CachedInfo()
	if info.AckFloor.Consumer == 0 {
		return consumer, nil // nothing was acknowledged: a new durable has a floor too, just before the first message
	}
	created := stream.CachedInfo().Created.UnixNano()
	settled, known, err := s.cfg.Store.Position(ctx, created)
	if err != nil {
		return nil, err
	}
	if known && !s.otherDatabase(before.Config.Metadata) {
		if same, err := nothingBetween(ctx, stream, settled, info.AckFloor.Stream); err != nil || same {
			return consumer, err
		}
	}
	s.cfg.Log.WarnContext(ctx, "the durable has acknowledged what this database does not have: the database is new, or was restored from an older backup. "+
		"The durable is made anew, and the stream read from its start",
		"durable", s.cfg.Durable, "acknowledged", info.AckFloor.Stream, "in_database", settled)
	return s.remake(ctx, want)
}

// remake has the stream read from its start.
func (s *Subscriber) remake(ctx context.Context, want jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	if err := s.deleteDurable(ctx); err != nil {
		return nil, err
	}
	return s.create(ctx, want)
}

// nothingBetween says whether the stream has no message beyond what is settled and up to the floor. Where it has forgotten
// messages, the floor is not the last that was acknowledged: it lies just before the next that is on its way.
func nothingBetween(ctx context.Context, stream jetstream.Stream, settled, floor uint64) (bool, error) {
	if settled >= floor {
		return true, nil
	}
	next, err := stream.GetMsg(ctx, settled+1, jetstream.WithGetMsgSubject(events.InvalidationSubject+">"))
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
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) { // a process that shares it was quicker
		return fmt.Errorf("delete the durable %s: %w", s.cfg.Durable, err)
	}
	return nil
}

// settle applies a batch whose last message is at this place of the stream, see [Store.Settle]. A database that was
// replaced under this process makes it read the stream from its start.
func (s *Subscriber) settle(ctx context.Context, last uint64, batch []events.Invalidation, aside []SetAside) ([]events.Invalidation, error) {
	var to Place
	if s.created != 0 {
		to = Place{s.created, last}
	}
	fresh, err := s.cfg.Store.Settle(ctx, to, s.written, batch, aside)
	if errors.Is(err, ErrRestored) {
		s.cfg.Log.WarnContext(ctx, "the database was replaced, or restored from a backup: the durable is made anew, and the stream read from its start",
			"durable", s.cfg.Durable)
		if err := s.deleteDurable(ctx); err != nil { // which ends the consumer, and a new one is opened
			return nil, err
		}
		s.written = Place{}
	}
	if err == nil && to != (Place{}) {
		s.written = Place{s.created, max(s.written.Sequence, last)}
	}
	return fresh, err
}

// lastOf returns the highest place of a batch.
func lastOf(batch []incoming.Delivery) (last uint64) {
	for i := range batch {
		last = max(last, batch[i].Sequence)
	}
	return last
}
