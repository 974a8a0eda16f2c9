package restore

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// Content reads the stream of events for the check of the database. It returns what the stream has,
// and what contradicts the database.
func Content(
	ctx context.Context, js jetstream.JetStream, l *ledger.Ledger, trust events.Trust, now time.Time, log *slog.Logger,
) (content *ledger.StreamContent, found []ledger.Violation, err error) {
	stream, err := invalidations(ctx, js)
	if err != nil {
		return nil, nil, err
	}
	content = &ledger.StreamContent{PerSubject: stream.CachedInfo().Config.MaxMsgsPerSubject, Began: now.Unix()}
	violation := func(e streamEvent, what string, args ...any) {
		found = append(found, ledger.Violation{Target: e.event.Target.String(), What: fmt.Sprintf(what, args...)})
	}
	take := func(_ context.Context, part compared, batch []streamMessage) error {
		for _, m := range batch {
			if t := m.target(); t != (events.Target{}) {
				content.Heard(t)
			}
		}
		for _, at := range part.matched {
			content.Has(at)
		}
		for _, e := range part.lacking {
			violation(e, "the database lacks sequence %d, which the stream of events has: %s", e.event.Sequence, RecoverHint)
		}
		for _, e := range part.twice {
			violation(e, "sequence %d is in the stream with another event than in the database: it was issued twice", e.event.Sequence)
		}
		return nil
	}
	err = comparison{ledger: l, trust: trust, log: log, each: take}.run(ctx, stream, 1)
	return content, found, err
}
