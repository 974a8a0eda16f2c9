package registry

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/outbox"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

// restoreGuard is what requests and lookups need of the restore guard.
type restoreGuard interface {
	// Epoch returns the epoch, and whether the database lacks nothing.
	Epoch() (epoch int, complete bool)
	// Same returns [ErrComparing] if the epoch has changed.
	Same(ctx context.Context, epoch int) error
	// Admit takes the requests of services on hold out of a batch that was loaded, last of all.
	Admit(ctx context.Context, st *decision.State, todo []decision.Incoming) (admitted, onHold []decision.Incoming, err error)
	// Answers returns [ErrComparing] or [ErrBehind] if the database, which has this sequence, may
	// know less of the service than was announced. AnswersNoKey does so for a key that it lacks.
	Answers(t events.Target, sequence int64) error
	AnswersNoKey(key events.PublicKey) error
}

// intake takes batches of requests through load, decide and commit, and hands the messages to the
// relay.
type intake struct {
	policy Policy
	key    events.SigningKey
	trust  events.Trust        // in the registry's own keys
	own    []events.TrustedKey // the same keys: no service gets one of them
	store  *Store
	guard  restoreGuard
	// publish hands the messages of a batch to the relay.
	publish func(context.Context, outbox.Publication) error
	// told: what services were told; nil: nothing.
	told          func(context.Context, []events.Target) (map[events.Target]*told, error)
	committed     func([]events.Invalidation)
	log           *slog.Logger
	metrics       *metrics
	now           func() time.Time
	verifications decision.VerificationBudget
	memory        *memory
	// charge takes an answer to a stranger from the budget for garbage, and reports whether there was
	// one.
	charge func() bool
	// await: waits until nothing is being committed; nil: nothing ever is.
	await func(context.Context) error
	// batch: how many requests are decided and committed together, see Config.Batch.
	batch  int
	inHand *consume.InHand // notes the stages
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
func (in *intake) handle(ctx context.Context, messages []*queue.Message) (err error) {
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
func (in *intake) parse(messages []*queue.Message) []decision.Incoming {
	todo := make([]decision.Incoming, 0, len(messages))
	for i, m := range messages {
		one := parsed(m, i)
		switch {
		case one.Request == nil:
			in.metrics.requests.WithLabelValues("", queue.Unanswerable).Inc()
		case !m.Kept(): // otherwise an earlier try settled it
			todo = append(todo, one)
		}
	}
	decision.MarkOutproved(todo, in.policy.Origin)
	return todo
}

// parsed returns the request of a message. The fair queue has parsed it already, as a rule.
func parsed(m *queue.Message, index int) decision.Incoming {
	var one decision.Incoming
	if m.Payload.Parsed != nil {
		one = *m.Payload.Parsed
		one.Index = index
	} else {
		one = decision.NewIncoming(m.Subject, m.Data, m.Stored.Unix(), index)
	}
	one.Stored, one.Place = m.Stored, m.Payload.Place
	// A malformed request is refused for the same reason each time.
	one.Redelivered = m.Payload.Redelivered && one.Refusal == nil
	return one
}

const (
	firstHold   = time.Second // doubled each time
	longestHold = 32 * time.Second
)

// hold gives back the requests of services that are on hold. They wait in the stream and come again
// later.
func (in *intake) hold(held []decision.Incoming, messages []*queue.Message) {
	for _, one := range held {
		m := messages[one.Index]
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

func (in *intake) count(o *decision.Outcome, m *queue.Message) {
	result := "committed"
	switch o.Verdict {
	case decision.Duplicate:
		result = "duplicate"
	case decision.Refused:
		result = string(o.Reason)
		in.log.Debug("request refused", "target", o.In.Request.Target.String(), "reason", o.Reason, "detail", o.Detail)
	}
	in.metrics.requests.WithLabelValues(string(o.In.Request.Kind), result).Inc()
	in.metrics.decided.Observe(in.now().Sub(m.Stored).Seconds())
}
