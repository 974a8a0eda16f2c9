package provision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/streams"
)

// ErrStreamMeaning means that a stream or durable exists and doesn't mean what docs/protocol.md §4
// says. Changing it could lose messages, so a person must decide.
var ErrStreamMeaning = errors.New("an existing stream has another meaning")

// Ensure creates the streams that are missing, and applies changed limits to those that exist.
// Choices of the operator that the contract leaves open (replicas, placement, size) stay. replicas
// is for streams that are created here; 0 means 1.
func Ensure(ctx context.Context, js jetstream.JetStream, replicas int, limits Limits) error {
	for _, want := range limits.streams() {
		want.Replicas = max(1, replicas)
		if err := want.ensure(ctx, js); err != nil {
			return fmt.Errorf("stream %s: %w", want.Name, err)
		}
	}
	return nil
}

// ensure creates a stream, or updates the one that exists.
func (b *boundedStream) ensure(ctx context.Context, js jetstream.JetStream) error {
	stream, err := js.Stream(ctx, b.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = b.put(ctx, js, b.StreamConfig, jetstream.StreamConfig{})
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return err
		}
		stream, err = js.Stream(ctx, b.Name) // another replica was faster
	}
	if err != nil {
		return err
	}
	have := stream.CachedInfo().Config // -1 and 0 mean no limit
	have.MaxMsgSize, have.MaxMsgsPerSubject, have.MaxBytes = max(0, have.MaxMsgSize), max(0, have.MaxMsgsPerSubject), max(0, have.MaxBytes)
	if err := sameMeaning(have, b.StreamConfig); err != nil {
		return err
	}
	changed := have
	changed.MaxMsgSize, changed.MaxAge, changed.Discard = b.MaxMsgSize, b.MaxAge, b.Discard
	changed.AllowDirect, changed.Duplicates, changed.AllowAtomicPublish = b.AllowDirect, b.Duplicates, b.AllowAtomicPublish
	changed.DiscardNewPerSubject = b.DiscardNewPerSubject
	if b.RePublish != nil { // otherwise it is the operator's
		changed.RePublish = b.RePublish
	}
	changed.Metadata = maps.Clone(have.Metadata)
	if err := b.bound(ctx, stream, &changed); err != nil {
		return err
	}
	return b.put(ctx, js, changed, have)
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
	case !slices.Equal(subjects, wanted):
		return differs("list of subjects", subjects, wanted)
	case have.DenyDelete != want.DenyDelete, have.DenyPurge != want.DenyPurge:
		return differs("protection against delete and purge", have.DenyDelete && have.DenyPurge, want.DenyDelete)
	}
	return nil
}

// requestConsumer creates or finds the registry's durable, and returns when its stream was created.
func requestConsumer(ctx context.Context, js jetstream.JetStream) (consumer jetstream.Consumer, created time.Time, err error) {
	stream, err := js.Stream(ctx, streams.Requests)
	if err != nil {
		return nil, created, fmt.Errorf("look at the stream %s: %w", streams.Requests, err)
	}
	created = stream.CachedInfo().Created
	if consumer, err = requestDurable(ctx, js); err != nil {
		return nil, created, err
	}
	switch info, err := stream.Info(ctx); {
	case err != nil:
		return nil, created, fmt.Errorf("look at the stream %s: %w", streams.Requests, err)
	case !info.Created.Equal(created): // so the durable may belong to either
		return nil, created, fmt.Errorf("the stream %s was deleted and created again meanwhile", streams.Requests)
	}
	return consumer, created, nil
}

// requestDurable creates the durable, and resets what others have set on it. The broker may set its
// own limits again.
func requestDurable(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	want := streams.RegistryConsumer()
	consumer, err := js.Consumer(ctx, streams.Requests, want.Durable)
	if err == nil {
		have := consumer.CachedInfo().Config
		if have.DeliverPolicy != want.DeliverPolicy || have.AckPolicy != want.AckPolicy || have.FilterSubject != want.FilterSubject {
			// Trying again can't help.
			return nil, backoff.Permanent(fmt.Errorf("durable %s: %w: delete it; the registry creates it again", want.Durable, ErrStreamMeaning))
		}
		want.PauseUntil = have.PauseUntil // the operator's choice
		// The broker never changes it.
		if want.MaxWaiting = have.MaxWaiting; have.MaxWaiting < consume.LeastWaiting {
			if err := js.DeleteConsumer(ctx, streams.Requests, want.Durable); err != nil {
				return nil, fmt.Errorf("durable %s: delete it, because it allows too few pulls at a time: %w", want.Durable, err)
			}
			want.MaxWaiting = 0
		}
	} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, fmt.Errorf("durable %s: %w", want.Durable, err)
	}
	consumer, err = consume.Put(ctx, want, func(cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
		return js.CreateOrUpdateConsumer(ctx, streams.Requests, cfg)
	})
	if err != nil {
		return nil, fmt.Errorf("durable %s: %w", want.Durable, err)
	}
	return consumer, nil
}
