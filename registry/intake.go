package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
)

// intake takes batches of requests through load, decide and commit, and hands the messages to the
// relay.
type intake struct {
	policy Policy
	key    events.SigningKey
	trust  events.Trust        // in the registry's own keys
	own    []events.TrustedKey // the same keys: no service gets one of them
	store  *Store
	relay  *relay
	fence  *fence
	// told: what services were told; nil: nothing.
	told      func(context.Context, []events.Target) (map[events.Target]*told, error)
	committed func([]events.Invalidation)
	log       *slog.Logger
	metrics   *metrics
	now       func() time.Time
	looks     looks
	memory    *memory
	garbage   *budget
	// await: waits until nothing is being committed; nil: nothing ever is.
	await func(context.Context) error
	// portion: how many requests are decided and committed together, see Config.Batch.
	portion int
	inHand  *consume.InHand // notes the stages
}

// The stages of a request's way through the intake. The log names the stage in which a request
// hangs.
const (
	stageLoad    = "load"
	stageDecide  = "decide"
	stageCommit  = "commit"
	stagePublish = "publish"
)

// handle is the consumer's handler. If it returns an error, the whole batch is handled again, and
// finds the changes that were committed by then.
func (in *intake) handle(ctx context.Context, messages []*requestMessage) (err error) {
	w := &work{intake: in, messages: messages}
	w.todo = in.unanswered(ctx, messages, in.parse(messages))
	in.await = w.finish
	defer func() { in.await = nil }()
	defer func() { // also after a panic: no commit may go on while the batch is handled again
		err = errors.Join(err, w.finish(ctx))
	}()
	return w.run(ctx)
}

// parse runs the first check on each message. If a message's subject names no service, it can't be
// answered; it is acknowledged with the batch.
func (in *intake) parse(messages []*requestMessage) []incoming {
	todo := make([]incoming, 0, len(messages))
	for i, m := range messages {
		one := parsed(m, i)
		switch {
		case one.request == nil:
			in.metrics.requests.WithLabelValues("", unanswerable).Inc()
		case !m.Kept(): // otherwise an earlier try settled it
			todo = append(todo, one)
		}
	}
	markOutproved(todo, in.policy.Origin)
	return todo
}

// parsed returns the request of a message. The fair queue has parsed it already, as a rule.
func parsed(m *requestMessage, index int) incoming {
	var one incoming
	if m.Payload.in != nil {
		one = *m.Payload.in
		one.index = index
	} else {
		one = newIncoming(m.Subject, m.Data, m.Stored.Unix(), index)
	}
	one.stored, one.place = m.Stored, m.Payload.at
	// A malformed request is refused for the same reason each time.
	one.again = m.Payload.again && one.refusal == nil
	return one
}

// newIncoming parses a message. Its request is nil if the subject names no service.
func newIncoming(subject string, payload []byte, storedAt int64, index int) incoming {
	one := incoming{payload: payload, storedAt: storedAt, index: index}
	request, err := events.ParseRequest(subject, payload)
	if errors.As(err, &one.refusal) || err == nil {
		one.request = request
	}
	return one
}

// decide decides requests on the present state. It tells no one of the outcomes: that is for after
// the commit.
func (in *intake) decide(ctx context.Context, todo []incoming) (*batch, error) {
	in.metrics.batch.Observe(float64(len(todo)))
	in.inHand.Stage(stageLoad)
	st, err := in.load(ctx, todo)
	if err != nil {
		return nil, err
	}
	todo, held, err := in.fence.admit(ctx, st, todo) // last, after everything was read
	if err != nil {
		return nil, err
	}
	now := in.now()
	b := newBatch(in.policy, in.key, now.Unix(), st, todo)
	b.at, b.held = now, held
	in.inHand.Stage(stageDecide)
	b.decide()
	in.inHand.Stage(stageLoad)
	if err := in.complete(ctx, b); err != nil {
		return nil, err
	}
	targets, lookBack := b.unsettled(&in.looks)
	b.previous, err = in.store.previous(ctx, targets, lookBack)
	return b, err
}

// settle acknowledges what is committed, and hands all messages to the relay.
func (in *intake) settle(ctx context.Context, messages []*requestMessage, b *batch, lost map[events.Target]bool) error {
	most := requestsOf(b.groups)
	p := publication{outbox: make([]signed, 0, 2*most)}
	changes := make([]events.Invalidation, 0, most)
	done := make([]*requestMessage, 0, most)
	for _, g := range b.groups {
		if lost[g.target] {
			continue
		}
		for i := range g.outcomes {
			o := &g.outcomes[i]
			m := messages[o.in.index]
			m.Keep()
			if o.dropped {
				done = append(done, m)
				continue
			}
			in.count(o, m)
			if o.verdict == duplicate {
				o.receiptBytes = believable(o.receiptBytes, g.target, in.trust, in.key)
			}
			if o.verdict != committed {
				p.answers = append(p.answers, answer{o.messages()[0], m})
				continue
			}
			m.Witness() // its change is written: a later failure is not its fault
			changes = append(changes, o.event)
			p.outbox = append(p.outbox, o.messages()...)
			done = append(done, m)
		}
	}
	in.inHand.Stage(stagePublish)
	err := in.relay.enqueue(ctx, p) // first of all, because subscribers wait for the event
	for _, m := range done {
		if err := m.Ack(); err != nil {
			in.log.Debug("acknowledge", "error", err) // it is delivered again and found committed
		}
	}
	in.hold(b.held, messages)
	if len(changes) > 0 {
		in.committed(changes)
	}
	if err != nil {
		for _, a := range p.answers {
			_ = a.request.Nak()
		}
		return fmt.Errorf("hand a batch to the relay: %w", err)
	}
	return nil
}

const (
	firstHold   = time.Second // doubled each time
	longestHold = 32 * time.Second
)

// hold gives back the requests of services that are on hold. They wait in the stream and come again
// later.
func (in *intake) hold(held []incoming, messages []*requestMessage) {
	for _, one := range held {
		m := messages[one.index]
		m.Keep()
		delay := longestHold
		if n := m.Delivered; n < 6 { // 2^5 s is the longest delay
			delay = firstHold << max(0, int(n)-1)
		}
		if err := m.NakWithDelay(delay); err != nil {
			in.log.Debug("give a request back", "error", err) // it comes again by itself
		}
	}
}

func (in *intake) count(o *outcome, m *requestMessage) {
	result := "committed"
	switch o.verdict {
	case duplicate:
		result = "duplicate"
	case rejected:
		result = string(o.reason)
		in.log.Debug("request refused", "target", o.in.request.Target.String(), "reason", o.reason, "detail", o.detail)
	}
	in.metrics.requests.WithLabelValues(string(o.in.request.Kind), result).Inc()
	in.metrics.decided.Observe(in.now().Sub(m.Stored).Seconds())
}
