package provision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/streams"
)

// ErrStreamMeaning means that a stream or durable exists and doesn't mean what docs/protocol.md §4
// says. Changing it could lose messages, so a person must decide.
var ErrStreamMeaning = errors.New("an existing stream has another meaning")

// Ensure creates the streams that are missing, and applies changed limits to those that exist.
// replicas is for streams that are created here; 0 means 1.
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

// ErrOrigin means that this registry has signed the last event of the stream under another domain
// name.
var ErrOrigin = errors.New("the stream of events belongs to this registry under another origin")

// checkOrigin returns [ErrOrigin] if the last event shows that --origin has changed. An event that
// a stranger has put there says nothing: otherwise it could stop the registry.
func checkOrigin(ctx context.Context, js jetstream.JetStream, trust events.Trust) error {
	stream, err := js.Stream(ctx, streams.Invalidations)
	if err != nil {
		return fmt.Errorf("look at the last event: %w", err)
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	last, err := stream.GetMsg(ctx, state.LastSeq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // it was deleted
	}
	if err != nil {
		return fmt.Errorf("look at the last event: %w", err)
	}
	_, err = trust.At(last.Time, last.Sequence).Invalidation(last.Subject, last.Data)
	refusal := (*events.Refusal)(nil)
	if !errors.As(err, &refusal) || refusal.Reason != events.WrongOrigin {
		return nil
	}
	var message struct {
		Data struct {
			Origin string `json:"origin"`
		} `json:"data"`
	}
	if err := json.Unmarshal(last.Data, &message); err != nil {
		return fmt.Errorf("read the last event: %w", err)
	}
	return fmt.Errorf("%w: %q instead of %q; set it with --origin, or use another broker account and another database",
		ErrOrigin, message.Data.Origin, trust.Origin())
}

// Limits bounds the space that the streams take at the broker. 0: a stream keeps the bound that it
// has, and gets the default if it has none.
type Limits struct {
	Waiting                    int64 // requests of one kind for one service
	RequestBytes, ReceiptBytes int64 // sizes of these streams
	EventBytes                 int64 // size of the stream of events; it has no default
}

const (
	defaultBytes = 1 << 30
	leastBytes   = 1 << 20
	// shareOf lets both streams have their bounds, and leaves most of a small store to the events.
	shareOf = 4

	// provisional is the member of a stream's metadata that says which bounds are not what they are
	// meant to be: a start was killed while it tried what the broker has room for, or more was
	// waiting than the bound allows. The next start sets them.
	provisional         = "omi-provisional-bounds"
	provisionalBytes    = "bytes" // and perhaps the messages
	provisionalMessages = "messages"
)

// ErrStreamRoom means that the broker can't reserve what the operator says that a stream is to
// have.
var ErrStreamRoom = errors.New("the broker has no room for that")

// boundedStream is a stream as it is wanted.
type boundedStream struct {
	jetstream.StreamConfig
	waiting bool  // the operator says how many messages of a subject there may be
	bytes   int64 // as the operator says
	usual   int64 // bytes, without the operator's word; 0: no bound
}

func (l Limits) streams() []*boundedStream {
	requests := streams.RequestsConfig()
	if l.Waiting > 0 {
		requests.MaxMsgsPerSubject = l.Waiting
	}
	return []*boundedStream{
		{StreamConfig: requests, waiting: l.Waiting > 0, bytes: l.RequestBytes, usual: defaultBytes},
		{StreamConfig: streams.InvalidationsConfig(), bytes: l.EventBytes},
		{StreamConfig: streams.ReceiptsConfig(), bytes: l.ReceiptBytes, usual: defaultBytes},
	}
}

// bound sets how many messages of a subject an existing stream has. Of requests, JetStream would
// delete what is beyond, the oldest first: so that bound is never less than what waits.
func (b *boundedStream) bound(ctx context.Context, stream jetstream.Stream, changed *jetstream.StreamConfig) error {
	what, unfinished := changed.Metadata[provisional]
	delete(changed.Metadata, provisional)
	if what == provisionalBytes { // else they are as they were meant to be
		changed.MaxBytes = 0
	}
	have, most := changed.MaxMsgsPerSubject, b.MaxMsgsPerSubject
	if b.DiscardNewPerSubject && !b.waiting && have > 0 && !unfinished {
		return nil
	}
	changed.MaxMsgsPerSubject = most
	if !b.DiscardNewPerSubject || have > 0 && have <= most || stream.CachedInfo().State.Msgs <= uint64(most) {
		return nil
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return fmt.Errorf("look at what waits: %w", err)
	}
	for _, waiting := range info.State.Subjects {
		changed.MaxMsgsPerSubject = max(changed.MaxMsgsPerSubject, int64(waiting))
	}
	if changed.MaxMsgsPerSubject > most {
		changed.Metadata = withProvisional(changed.Metadata, provisionalMessages)
	}
	return nil
}

// withProvisional is a copy of a stream's metadata that says so.
func withProvisional(metadata map[string]string, what string) map[string]string {
	marked := map[string]string{}
	maps.Copy(marked, metadata)
	marked[provisional] = what
	return marked
}

// put writes a configuration, with as many bytes as the operator says, as it has, or as fit.
func (b *boundedStream) put(ctx context.Context, js jetstream.JetStream, cfg, have jetstream.StreamConfig) error {
	switch {
	case b.bytes > 0:
		cfg.MaxBytes = b.bytes
	case cfg.MaxBytes == 0 && b.usual > 0:
		return b.fit(ctx, js, cfg)
	}
	if reflect.DeepEqual(cfg, have) {
		return nil
	}
	_, err := js.CreateOrUpdateStream(ctx, cfg)
	if b.bytes > 0 && room.Lacks(err) {
		return fmt.Errorf("%w: %d bytes; give its JetStream more space, or this stream a lower limit: %w", ErrStreamRoom, cfg.MaxBytes, err)
	}
	return err
}

// fit gives a stream its usual size, or what is left of that where the broker can't reserve a
// multiple of it. A client can't ask how much that is: so it is tried.
func (b *boundedStream) fit(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	trial := cfg
	trial.Metadata = withProvisional(cfg.Metadata, provisionalBytes)
	for cfg.MaxBytes = b.usual; cfg.MaxBytes > leastBytes; cfg.MaxBytes /= 2 {
		trial.MaxBytes = shareOf * cfg.MaxBytes
		_, err := js.CreateOrUpdateStream(ctx, trial)
		if err == nil {
			break
		}
		if !room.Lacks(err) {
			return err
		}
	}
	_, err := js.CreateOrUpdateStream(ctx, cfg)
	if room.Lacks(err) {
		return fmt.Errorf("the broker can't even reserve %d bytes; give its JetStream more space: %w", cfg.MaxBytes, err)
	}
	return err
}
