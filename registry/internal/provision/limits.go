package provision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/streams"
)

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
