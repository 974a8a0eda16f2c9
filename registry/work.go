package registry

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/outbox"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

// work is a pull of requests, on its way through the registry in batches (handleBatch). While one
// batch is committed and waits for the disk, the next one is decided.
//
//	todo ──▶ batch ──▶ load … confirm ──▶ commit ──▶ announce, acknowledge
//	           ├── no service that is in the batch being committed, or waits for it
//	           └── all requests of a service, so that few services are in two batches
//
// So two concurrent batches have no service and no key in common, and each finds what it would find
// alone. Requests that have one in common are decided in the order of the stream.
type work struct {
	*intake
	messages   []*queue.Message
	todo       []decision.Incoming                          // in the order of the stream
	committing *committing                                  // nil: nothing is being committed
	finishing  func(conflicts map[events.Target]bool) error // what comes after that commit
	futile     int                                          // commits in a row in which nothing stood
}

// mostFutile is the number of such commits that other replicas can't explain any more.
const mostFutile = 10

var errFutile = errors.New("the database refuses changes again and again that don't conflict with its content; it may be damaged: run omi-registry check")

// committing is a batch that is being committed.
type committing struct {
	*decision.Batch
	done chan struct{}

	conflicts ledger.Conflicts // set when done: what must be decided again
	err       error
	panics    any
}

// run finishes everything, except a commit that is under way when it fails: finish waits for that
// one.
func (w *work) run(ctx context.Context) error {
	for w.more() {
		if err := w.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step handles the next batch, or finishes the one before if all that is left waits for its commit.
func (w *work) step(ctx context.Context) error {
	if batch := w.next(); len(batch) > 0 {
		return w.handleBatch(ctx, batch)
	}
	return w.finish(ctx)
}

// more reports whether anything is left to do.
func (w *work) more() bool { return len(w.todo) > 0 || w.committing != nil }

// next takes the requests that may be decided now: as few services as fill a batch, each with all
// its requests. So the rest belongs to other services and can be decided while this batch is
// committed, and a service's row changes once. A batch may be a little longer, to include all
// requests of its last service.
func (w *work) next() (batch []decision.Incoming) {
	busy := newParties(w.committing)
	asks := make(map[events.Target]int, len(w.todo))
	for i := range w.todo {
		asks[w.todo[i].Request.Target]++
	}
	room, most := w.batch, min(w.batch+w.batch/8, MaxBatch)
	later := w.todo[:0]
	for i, one := range w.todo {
		if len(batch) == most {
			later = append(later, w.todo[i:]...)
			break
		}
		t := one.Request.Target
		if busy.include(&one) || room <= 0 && asks[t] > 0 {
			busy.add(&one) // requests that share something with this one wait for it
			later = append(later, one)
			continue
		}
		room -= asks[t]
		asks[t] = 0 // from here on the service is in the batch
		batch = append(batch, one)
	}
	w.todo = later
	return batch
}

// parties is the services and keys of requests.
type parties struct {
	services map[events.Target]bool
	keys     map[events.PublicKey]bool
}

func newParties(c *committing) parties {
	var groups []*decision.Group
	if c != nil {
		groups = c.Groups
	}
	p := parties{make(map[events.Target]bool, len(groups)), make(map[events.PublicKey]bool, decision.CountRequests(groups))}
	for _, g := range groups {
		for i := range g.Requests {
			p.add(&g.Requests[i])
		}
	}
	return p
}

func (p parties) add(in *decision.Incoming) {
	p.services[in.Request.Target] = true
	if key := in.Request.NewKey; !key.IsZero() {
		p.keys[key] = true
	}
}

func (p parties) include(in *decision.Incoming) bool {
	return p.services[in.Request.Target] || p.keys[in.Request.NewKey]
}

// dropBeyondBudget drops the refusals of requests for unbound names beyond the budget.
func (w *work) dropBeyondBudget(b *decision.Batch) {
	for _, g := range b.Groups {
		if g.Existed || g.Changed() {
			continue
		}
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			o.Dropped = o.Verdict == decision.Refused && !w.messages[o.In.Index].Payload.Paid && !w.charge()
		}
	}
}

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
	// charge takes an answer to a stranger from the budget for garbage, and reports whether there
	// was one.
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
