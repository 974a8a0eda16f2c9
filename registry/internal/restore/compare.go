package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/streams"
)

// streamEvent is an event that the stream has.
type streamEvent struct {
	event  events.Invalidation
	place  uint64
	stored time.Time
	signer events.PublicKey
}

// compared is the result of comparing a part of the stream with the history.
type compared struct {
	matched []ledger.ChangeID // in the history with the same nonce
	lacking []streamEvent     // missing from the history
	// twice: missing, and the history has another event at their sequence: it was issued twice.
	twice   []streamEvent
	refused int // messages that are in no history and that no key of the registry signed
	ended   int // the same, but a key signed them after its end
}

// checksEach is how many messages are worth a goroutine to look at.
const checksEach = 16

// compare compares messages of the stream of invalidations with the history. A message whose nonce
// is in the history is not verified again; any other must show who signed it.
func compare(ctx context.Context, l *ledger.Ledger, trust events.Trust, messages []streamMessage) (compared, error) {
	list := make([]claim, len(messages))
	parallel.Each(len(messages), checksEach, func(i int) { list[i] = newClaim(messages[i]) })
	places := make([]ledger.ChangeID, len(list))
	for i := range list {
		places[i] = list[i].ChangeID
	}
	known, err := l.Nonces(ctx, places)
	if err != nil {
		return compared{}, err
	}
	var c compared
	var unknown []claim
	for _, one := range list {
		if nonce, ok := known[one.ChangeID]; ok && nonce == one.nonce {
			c.matched = append(c.matched, one.ChangeID)
		} else {
			unknown = append(unknown, one)
		}
	}
	found, refused := make([]streamEvent, len(unknown)), make([]error, len(unknown))
	parallel.Each(len(unknown), checksEach, func(i int) {
		m, e := &unknown[i].message, &found[i]
		e.place, e.stored = m.place, m.stored
		e.event, e.signer, refused[i] = trust.At(m.stored, m.place).SignedInvalidation(m.subject, m.payload)
	})
	for i, at := range found {
		_, had := known[unknown[i].ChangeID]
		switch {
		case isEnded(refused[i]):
			c.ended++
		case refused[i] != nil || at.event.Sequence == 0:
			c.refused++
		case had:
			c.twice = append(c.twice, at)
		default:
			c.lacking = append(c.lacking, at)
		}
	}
	return c, nil
}

func isEnded(err error) bool {
	refusal := (*events.Refusal)(nil)
	return errors.As(err, &refusal) && refusal.Reason == events.EndedRegistryKey
}

// claim is what a message says it is.
type claim struct {
	ledger.ChangeID
	nonce   events.Nonce
	message streamMessage
}

func newClaim(m streamMessage) claim {
	c := claim{message: m}
	c.ChangeID, c.nonce = ledger.ChangeOf(m.subject, m.payload)
	return c
}

// target is the service in the message's subject; zero: there is none.
func (m *streamMessage) target() events.Target {
	name, _ := strings.CutPrefix(m.subject, events.InvalidationSubject)
	t, err := events.ParseTarget(name)
	if err != nil {
		return events.Target{}
	}
	return t
}

// comparison reads a part of the stream of invalidations and compares it with the history.
type comparison struct {
	ledger *ledger.Ledger
	trust  events.Trust
	log    *slog.Logger
	each   func(ctx context.Context, c compared, batch []streamMessage) error
	upTo   uint64 // messages behind this place are ignored; 0: none are
}

// run compares the stream from a place on, up to its end.
func (c comparison) run(ctx context.Context, stream jetstream.Stream, from uint64) error {
	info := stream.CachedInfo()
	last, first := info.State.LastSeq, max(from, info.State.FirstSeq)
	if info.State.Msgs == 0 || first > last {
		return nil
	}
	began, told, done := time.Now(), time.Now(), 0
	err := reading{stream: stream, from: first, each: func(ctx context.Context, batch []streamMessage) error {
		if c.upTo > 0 {
			batch = slices.DeleteFunc(batch, func(m streamMessage) bool { return m.place > c.upTo })
		}
		if len(batch) == 0 {
			return nil
		}
		found, err := compare(ctx, c.ledger, c.trust, batch)
		if err != nil {
			return err
		}
		if err := c.each(ctx, found, batch); err != nil {
			return err
		}
		done += len(batch)
		if time.Since(told) > progressEvery {
			told = time.Now()
			c.log.InfoContext(ctx, "comparing the stream of events with the database",
				"compared", done, "at", batch[len(batch)-1].place, "of", last)
		}
		return nil
	}}.read(ctx)
	if err == nil && done > silentProgress {
		c.log.InfoContext(ctx, "compared the stream of events with the database", "messages", done, "took", time.Since(began).String())
	}
	return err
}

// invalidations looks the stream up as it is now.
func invalidations(ctx context.Context, js jetstream.JetStream) (jetstream.Stream, error) {
	stream, err := js.Stream(ctx, streams.Invalidations)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("the broker has no stream %s: %w", streams.Invalidations, err)
	}
	if err != nil {
		return nil, fmt.Errorf("look at the stream %s: %w", streams.Invalidations, err)
	}
	return stream, nil
}
