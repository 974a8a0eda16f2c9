package registry

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/outbox"
)

// handleBatch is the life of a batch of requests, from the fair queue to the acknowledgement. Its
// steps have the names and the order of the package comment; TestStory compares the two.
//
// It returns while the batch is being committed, so that the next one can be loaded and decided
// meanwhile. What comes after the commit runs when the next batch is ready, or at the end (finish).
func (w *work) handleBatch(ctx context.Context, requests []decision.Incoming) error {
	state, err := w.load(ctx, requests)
	if err != nil {
		return err
	}
	admitted, onHold, err := w.guard.Admit(ctx, state, requests) // last of all that is read
	if err != nil {
		return err
	}
	b := w.decide(state, admitted)
	b.OnHold = onHold
	if err := w.confirm(ctx, b); err != nil {
		return err
	}
	if err := w.finish(ctx); err != nil { // of the batch before
		return err
	}
	w.committing = w.commit(ctx, b)
	w.finishing = func(conflicts map[events.Target]bool) error {
		announced := w.announce(ctx, b, conflicts)
		w.acknowledge(b, conflicts)
		if announced != nil {
			return announced
		}
		return w.repeat(b, conflicts)
	}
	return nil
}

// decide runs the checks. It tells no one of the outcomes: that is for after the commit.
func (in *intake) decide(st *decision.State, requests []decision.Incoming) *decision.Batch {
	in.inHand.Stage(stageDecide)
	b := decision.NewBatch(in.issuer(), in.now(), st, requests)
	b.Decide()
	return b
}

// issuer returns what decides and signs under the present policy.
func (in *intake) issuer() decision.Issuer {
	return decision.Issuer{Rules: in.policy.rules(), Key: in.key, NewNonce: events.NewNonce, Parallel: parallel.Each}
}

// commit writes a batch concurrently with everything else.
func (w *work) commit(ctx context.Context, b *decision.Batch) *committing {
	c := &committing{Batch: b, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer func() { c.panics = recover() }()
		c.conflicts, c.err = w.store.ledger.Commit(ctx, b.Groups, b.At)
	}()
	return c
}

// finish waits for the commit that is under way, if there is one, and does what comes after it.
func (w *work) finish(context.Context) error {
	c := w.committing
	if c == nil {
		return nil
	}
	w.inHand.Stage(stageCommit)
	<-c.done
	w.committing = nil
	if c.panics != nil {
		panic(c.panics)
	}
	w.memory.learn(w.now(), c.Batch, c.conflicts, c.err)
	if c.err != nil {
		return c.err
	}
	return w.finishing(c.conflicts.Services)
}

// announce hands the messages of a batch to the relay, before anything else happens: subscribers
// wait for the events.
func (w *work) announce(ctx context.Context, b *decision.Batch, conflicts map[events.Target]bool) error {
	w.dropBeyondBudget(b)
	b.SignRefusals()
	p := outbox.Publication{Changes: make([]decision.Message, 0, 2*decision.CountRequests(b.Groups))}
	for g, o := range outcomes(b, conflicts) {
		m := w.messages[o.In.Index]
		m.Keep()
		if o.Dropped {
			continue
		}
		w.count(o, m)
		if o.Verdict == decision.Duplicate {
			o.ReceiptBytes = believable(o.ReceiptBytes, g.Target, w.trust, w.key)
		}
		if o.Verdict != decision.Committed {
			p.Refusals = append(p.Refusals, outbox.Refusal{Message: o.Messages()[0], Request: m})
			continue
		}
		m.Witness() // its change is written: a later failure is not its fault
		p.Changes = append(p.Changes, o.Messages()...)
	}
	w.inHand.Stage(stagePublish)
	if err := w.publish(ctx, p); err != nil {
		return fmt.Errorf("hand a batch to the relay: %w", err)
	}
	return nil
}

// acknowledge acknowledges the requests that need no answer any more, and gives back those on hold.
// The relay acknowledges a refused request once its receipt is in the stream.
func (w *work) acknowledge(b *decision.Batch, conflicts map[events.Target]bool) {
	var changes []events.Invalidation
	for _, o := range outcomes(b, conflicts) {
		if o.Verdict == decision.Committed {
			changes = append(changes, o.Event)
		} else if !o.Dropped {
			continue
		}
		if err := w.messages[o.In.Index].Ack(); err != nil {
			w.log.Debug("acknowledge", "error", err) // it is delivered again and found committed
		}
	}
	w.hold(b.OnHold, w.messages)
	if len(changes) > 0 {
		w.committed(changes)
	}
}

// outcomes yields the outcomes of the services that are not in conflict.
func outcomes(b *decision.Batch, conflicts map[events.Target]bool) iter.Seq2[*decision.Group, *decision.Outcome] {
	return func(yield func(*decision.Group, *decision.Outcome) bool) {
		for _, g := range b.Groups {
			if conflicts[g.Target] {
				continue
			}
			for i := range g.Outcomes {
				if !yield(g, &g.Outcomes[i]) {
					return
				}
			}
		}
	}
}

// repeat puts the requests of the services that are in conflict back, to be decided again.
func (w *work) repeat(b *decision.Batch, conflicts map[events.Target]bool) error {
	w.metrics.lost.Add(float64(len(conflicts)))
	if w.futile++; len(conflicts) < b.CountChanges() || len(conflicts) == 0 {
		w.futile = 0
	}
	if w.futile > mostFutile {
		// Each request is then tried alone, so that none waits for ever for one that can't be
		// committed.
		return errFutile
	}
	if len(conflicts) > 0 {
		w.todo = append(b.RequestsOf(conflicts), w.todo...)
		slices.SortStableFunc(w.todo, func(a, b decision.Incoming) int { return cmp.Compare(a.Index, b.Index) })
	}
	return nil
}
