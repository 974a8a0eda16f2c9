package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
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

// report is what a comparison finds, as it goes on.
type report struct {
	behind  map[events.Target]need
	missing map[events.PublicKey]struct{}
	first   uint64 // the place in the stream of the first event that a service waits for; 0: none
	// twice: services with a sequence that was issued twice, and the last sequence in the stream.
	twice   map[events.Target]int64
	refused int
	ended   int
}

func newReport() *report {
	return &report{
		behind: map[events.Target]need{}, missing: map[events.PublicKey]struct{}{}, twice: map[events.Target]int64{},
	}
}

func (r *report) add(_ context.Context, c compared, _ []streamMessage) error {
	r.refused += c.refused
	r.ended += c.ended
	for _, e := range c.twice {
		r.twice[e.event.Target] = max(r.twice[e.event.Target], e.event.Sequence)
	}
	for _, e := range c.lacking {
		n := r.behind[e.event.Target]
		if n.place == 0 {
			n.place, n.signer = e.place, e.signer
		}
		n.sequence = max(n.sequence, e.event.Sequence)
		if key := e.event.NewKey; !key.IsZero() {
			n.keys = append(n.keys, key)
			r.missing[key] = struct{}{}
		}
		r.behind[e.event.Target] = n
	}
	return nil
}

// conclude removes the services that waiting can't help: a service with a sequence that was issued
// twice has two histories, and the database can't have both.
func (r *report) conclude() {
	for t, sequence := range r.twice {
		r.twice[t] = max(sequence, r.behind[t].sequence)
		delete(r.behind, t)
	}
	for _, n := range r.behind {
		if r.first == 0 || n.place < r.first {
			r.first = n.place
		}
	}
}

// tell logs what an operator must know.
func (r *report) tell(ctx context.Context, log *slog.Logger) {
	if r.refused > 0 {
		log.WarnContext(ctx, "the stream of events has messages that no key of this registry signed and the database does not know. "+
			"If the signing key has changed, name the earlier key with --trust", "messages", r.refused)
	}
	if r.ended > 0 {
		log.WarnContext(ctx, "the stream of events has messages that an earlier key of this registry signed after its end. They don't count: "+
			"check who may publish at the broker", "messages", r.ended)
	}
	for t, sequence := range r.twice {
		log.ErrorContext(ctx, "a sequence was issued twice, with different events, and that can't be undone: a subscriber may take either key for the service's. "+
			"Its developer must do Master Resets (omi reset) until its sequence is beyond the last one that was issued",
			"services", len(r.twice), "for_example", t.String(), "last_issued", sequence)
		break
	}
	for t, n := range r.behind { // any one of them
		log.ErrorContext(ctx, "the database lacks changes that were announced to everyone: it was restored from an older backup. "+
			"These services are on hold so that no sequence is issued twice; all others are served",
			"services", len(r.behind), "for_example", t.String(), "must_have_sequence", n.sequence, "do", RecoverHint, "signed_by", n.signer.String())
		break
	}
}

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
			if t := ledger.TargetOf(m.subject); !t.IsZero() {
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

const (
	readAtOnce = 512             // messages of a stream that are handled together
	readWithin = 5 * time.Second // for the broker to send some of them
	// readerIdle is after which time the broker drops an idle reader; clients may not delete one
	// (deploy/nats).
	readerIdle     = 30 * time.Second
	progressEvery  = 2 * time.Second // how often long work logs its progress
	silentProgress = 100_000         // messages that are read before the first such line
)

// errCut means that messages were lost on their way, or that the broker has them and doesn't send
// them.
var errCut = errors.New("the broker did not send all messages of the stream")

// streamMessage is one message of a stream.
type streamMessage struct {
	subject string
	payload []byte
	place   uint64 // its sequence in the stream
	stored  time.Time
}

// reading says which part of a stream to read, and what to do with the messages.
type reading struct {
	stream  jetstream.Stream
	from    uint64   // the first sequence
	filters []string // subjects; none: all
	each    func(ctx context.Context, batch []streamMessage) error
}

// read hands over every message that the stream has from a place on, in order, until there are no
// more.
func (r reading) read(ctx context.Context) error {
	cfg := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, r.from),
		AckPolicy: jetstream.AckNonePolicy, FilterSubjects: r.filters,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: readerIdle,
	}
	consumer, err := r.stream.CreateConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read the stream %s: %w", r.stream.CachedInfo().Config.Name, err)
	}
	left := consumer.CachedInfo().NumPending
	for delivered := uint64(0); left > 0; {
		batch, pending, err := fetch(ctx, consumer, &delivered)
		if err != nil {
			return fmt.Errorf("read the stream %s: %w", r.stream.CachedInfo().Config.Name, err)
		}
		if err := r.each(ctx, batch); err != nil {
			return err
		}
		left = pending
	}
	return nil
}

// fetch takes the next messages, at least one, and returns how many wait behind them.
func fetch(ctx context.Context, consumer jetstream.Consumer, delivered *uint64) (batch []streamMessage, pending uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	messages, err := consumer.Fetch(consume.AtMost(consumer, readAtOnce), jetstream.FetchContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	for msg := range messages.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return nil, 0, err
		}
		*delivered++
		if meta.Sequence.Consumer != *delivered {
			return nil, 0, errCut
		}
		batch = append(batch, streamMessage{msg.Subject(), msg.Data(), meta.Sequence.Stream, meta.Timestamp})
		if pending = meta.NumPending; pending == 0 {
			break // Fetch would wait for more
		}
	}
	if len(batch) == 0 {
		return nil, 0, errors.Join(errCut, messages.Error(), ctx.Err())
	}
	return batch, pending, nil
}
