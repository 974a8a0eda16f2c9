package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
)

// ErrStreamMeaning means that a stream or durable exists and means something else than docs/protocol.md §4: to change
// it could lose messages, so a person decides.
var ErrStreamMeaning = errors.New("an existing stream has another meaning")

// EnsureStreams creates the three streams of §4 where they are missing, and applies changed limits to those that
// exist. What an operator chose beside the contract (replicas, placement, size) stays. replicas is for streams that
// are created here; 0 means 1.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, replicas int) error {
	for _, want := range []jetstream.StreamConfig{
		events.RequestStreamConfig(), events.InvalidationStreamConfig(), events.ReceiptStreamConfig(),
	} {
		want.Replicas = max(1, replicas)
		if err := ensureStream(ctx, js, want); err != nil {
			return fmt.Errorf("stream %s: %w", want.Name, err)
		}
	}
	return nil
}

func ensureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) error {
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = js.CreateStream(ctx, want)
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return err
		}
		stream, err = js.Stream(ctx, want.Name) // another replica was quicker
	}
	if err != nil {
		return err
	}
	have := stream.CachedInfo().Config
	have.MaxMsgSize, have.MaxMsgsPerSubject = max(0, have.MaxMsgSize), max(0, have.MaxMsgsPerSubject) // -1 and 0 are no limit
	if err := sameMeaning(have, want); err != nil {
		return err
	}
	changed := have
	changed.MaxMsgSize, changed.MaxAge, changed.MaxMsgsPerSubject = want.MaxMsgSize, want.MaxAge, want.MaxMsgsPerSubject
	changed.AllowDirect, changed.Duplicates, changed.AllowAtomicPublish = want.AllowDirect, want.Duplicates, want.AllowAtomicPublish
	if want.RePublish != nil { // else it is an operator's own
		changed.RePublish = want.RePublish
	}
	if changed.MaxMsgSize == have.MaxMsgSize && changed.MaxAge == have.MaxAge &&
		changed.MaxMsgsPerSubject == have.MaxMsgsPerSubject && changed.AllowDirect == have.AllowDirect &&
		changed.Duplicates == have.Duplicates && changed.AllowAtomicPublish == have.AllowAtomicPublish &&
		(want.RePublish == nil || have.RePublish != nil && *have.RePublish == *want.RePublish) {
		return nil
	}
	_, err = js.UpdateStream(ctx, changed)
	return err
}

func sameMeaning(have, want jetstream.StreamConfig) error {
	differs := func(what string, have, want any) error {
		return fmt.Errorf("%w: its %s is %v instead of %v; move its messages elsewhere and delete it, or use another account", ErrStreamMeaning, what, have, want)
	}
	subjects := slices.Sorted(slices.Values(have.Subjects))
	switch wanted := slices.Sorted(slices.Values(want.Subjects)); {
	case have.Retention != want.Retention:
		return differs("retention", have.Retention, want.Retention)
	case have.Storage != want.Storage:
		return differs("storage", have.Storage, want.Storage)
	case have.Discard != want.Discard:
		return differs("discard policy", have.Discard, want.Discard)
	case !slices.Equal(subjects, wanted):
		return differs("list of subjects", subjects, wanted)
	case have.DenyDelete != want.DenyDelete, have.DenyPurge != want.DenyPurge:
		return differs("protection against delete and purge", have.DenyDelete && have.DenyPurge, want.DenyDelete)
	}
	return nil
}

// requestConsumer creates or finds the registry's durable, and returns when its stream was created.
func requestConsumer(ctx context.Context, js jetstream.JetStream) (consumer jetstream.Consumer, created time.Time, err error) {
	stream, err := js.Stream(ctx, events.RequestStream)
	if err != nil {
		return nil, created, fmt.Errorf("look at the stream %s: %w", events.RequestStream, err)
	}
	created = stream.CachedInfo().Created
	if consumer, err = requestDurable(ctx, js); err != nil {
		return nil, created, err
	}
	switch info, err := stream.Info(ctx); {
	case err != nil:
		return nil, created, fmt.Errorf("look at the stream %s: %w", events.RequestStream, err)
	case !info.Created.Equal(created): // so the durable may be that of either
		return nil, created, fmt.Errorf("the stream %s was deleted and created again meanwhile", events.RequestStream)
	}
	return consumer, created, nil
}

func requestDurable(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	want := events.RegistryConsumerConfig()
	consumer, err := js.Consumer(ctx, events.RequestStream, want.Durable)
	if err == nil {
		have := consumer.CachedInfo().Config
		if have.DeliverPolicy != want.DeliverPolicy || have.AckPolicy != want.AckPolicy || have.FilterSubject != want.FilterSubject {
			// Trying again can't mend it.
			return nil, backoff.Permanent(fmt.Errorf("durable %s: %w: delete it, it is made again", want.Durable, ErrStreamMeaning))
		}
	} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, fmt.Errorf("durable %s: %w", want.Durable, err)
	}
	consumer, err = js.CreateOrUpdateConsumer(ctx, events.RequestStream, want)
	if err != nil {
		return nil, fmt.Errorf("durable %s: %w", want.Durable, err)
	}
	return consumer, nil
}
