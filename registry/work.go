package registry

import (
	"context"
	"errors"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
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
	services map[events.Target]struct{}
	keys     map[events.PublicKey]struct{}
}

func newParties(c *committing) parties {
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

// dropBeyondBudget drops the refusals of requests for unbound names beyond the budget.
func (w *work) dropBeyondBudget(b *decision.Batch) {
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
