package registry

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

// work is the requests that were handed over together, on their way through decide and commit. They
// go in portions: while one portion is committed and waits for the disk, the next one is decided.
//
//	todo ──▶ portion ──▶ decide ──────────▶ commit ──▶ settle
//	           ├── no service that is in the portion being committed, or waits for it
//	           └── all requests of a service, so that few services are in two portions
//
// So two concurrent portions have no service and no key in common, and each finds what it would
// find alone. Requests that have one in common are decided in the order of the stream.
type work struct {
	*intake
	messages []*queue.Message
	todo     []decision.Incoming // in the order of the stream
	writing  *writing            // nil: nothing is being committed
	futile   int                 // commits in a row in which nothing stood
}

// mostFutile is the number of such commits that other replicas can't explain any more.
const mostFutile = 10

var errFutile = errors.New("the database refuses changes again and again that don't conflict with its content; it may be damaged: run omi-registry check")

// writing is a portion that is being committed.
type writing struct {
	*decision.Batch
	done chan struct{}

	lost   ledger.Conflicts // set when done: what must be decided again
	err    error
	panics any
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

// more reports whether anything is left to do.
func (w *work) more() bool { return len(w.todo) > 0 || w.writing != nil }

// step decides the next portion while the one before is committed, and settles the latter.
func (w *work) step(ctx context.Context) error {
	portion := w.next()
	if len(portion) == 0 { // all that is left waits for the commit
		return w.finish(ctx)
	}
	b, err := w.decide(ctx, portion)
	if err == nil {
		err = w.finish(ctx)
	}
	if err == nil {
		w.begin(ctx, b)
	}
	return err
}

// next takes the requests that may be decided now: as few services as fill a portion, each with all
// its requests. So the rest belongs to other services and can be decided while this portion is
// committed, and a service's row changes once. A portion may be a little longer, to include all
// requests of its last service.
func (w *work) next() (portion []decision.Incoming) {
	busy := newParties(w.writing)
	asks := make(map[events.Target]int, len(w.todo))
	for i := range w.todo {
		asks[w.todo[i].Request.Target]++
	}
	room, most := w.portion, min(w.portion+w.portion/8, MaxBatch)
	later := w.todo[:0]
	for i, one := range w.todo {
		if len(portion) == most {
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
		asks[t] = 0 // from here on the service is in the portion
		portion = append(portion, one)
	}
	w.todo = later
	return portion
}

// begin commits a portion concurrently with everything else.
func (w *work) begin(ctx context.Context, b *decision.Batch) {
	c := &writing{Batch: b, done: make(chan struct{})}
	w.writing = c
	go func() {
		defer close(c.done)
		defer func() { c.panics = recover() }()
		c.lost, c.err = w.store.ledger.Commit(ctx, b.Groups, b.At)
	}()
}

// finish waits for the commit that is under way, if there is one, and settles it.
func (w *work) finish(ctx context.Context) error {
	c := w.writing
	if c == nil {
		return nil
	}
	w.inHand.Stage(stageCommit)
	<-c.done
	w.writing = nil
	if c.panics != nil {
		panic(c.panics)
	}
	w.memory.learn(w.now(), c.Batch, c.lost, c.err)
	if c.err != nil {
		return c.err
	}
	lost := c.lost.Services
	w.thin(c.Batch)
	c.SignRefusals()
	if err := w.settle(ctx, w.messages, c.Batch, lost); err != nil {
		return err
	}
	w.metrics.lost.Add(float64(len(lost)))
	if w.futile++; len(lost) < c.CountChanges() || len(lost) == 0 {
		w.futile = 0
	}
	if w.futile > mostFutile {
		// Each request is then tried alone, so that none waits for ever for one that can't be
		// committed.
		return errFutile
	}
	if len(lost) > 0 {
		w.todo = append(c.RequestsOf(lost), w.todo...)
		slices.SortStableFunc(w.todo, func(a, b decision.Incoming) int { return cmp.Compare(a.Index, b.Index) })
	}
	return nil
}

// parties is the services and keys of requests.
type parties struct {
	services map[events.Target]struct{}
	keys     map[events.PublicKey]struct{}
}

func newParties(c *writing) parties {
	if c == nil {
		return parties{map[events.Target]struct{}{}, map[events.PublicKey]struct{}{}}
	}
	n := decision.CountRequests(c.Groups)
	p := parties{make(map[events.Target]struct{}, len(c.Groups)), make(map[events.PublicKey]struct{}, n)}
	for _, g := range c.Groups {
		for i := range g.Requests {
			p.add(&g.Requests[i])
		}
	}
	return p
}

func (p parties) add(in *decision.Incoming) {
	p.services[in.Request.Target] = struct{}{}
	if key := in.Request.NewKey; !key.IsZero() {
		p.keys[key] = struct{}{}
	}
}

func (p parties) include(in *decision.Incoming) bool {
	if _, ok := p.services[in.Request.Target]; ok {
		return true
	}
	_, ok := p.keys[in.Request.NewKey]
	return ok
}

// thin drops the refusals of requests for unbound names beyond the budget.
func (w *work) thin(b *decision.Batch) {
	for _, g := range b.Groups {
		if g.Existed || g.Changed() {
			continue
		}
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			if o.Verdict != decision.Refused || w.messages[o.In.Index].Payload.Paid {
				continue
			}
			o.Dropped = !w.charge()
		}
	}
}
