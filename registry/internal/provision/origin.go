package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// ErrOrigin means that this registry has signed the last event of the stream under another domain
// name. A reader of the stream believes one name. Under the new name all earlier events would count
// for nothing, and readers that know the old name would ignore new ones.
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
