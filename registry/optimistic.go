package registry

import (
	"context"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// An optimistic batch is decided on what the registry remembers, and confirmed before it is
// answered:
//
//	memory ──▶ decide ──▶ a change ────────▶ compare-and-swap at the commit ──▶ stands
//	  ▲           ▲  └──▶ any other answer ▶ read the database ▶ as remembered ▶ stands
//	  │           └───────── decide again ◀── different ◀──┘              │
//	  └─────────────────────────── forgotten ◀── conflict ◀───────────────┘
//
// So we never refuse a request on remembered state alone.

// load returns the state to decide on: what is remembered, and for the rest what the database says.
func (in *intake) load(ctx context.Context, todo []decision.Incoming) (*decision.State, error) {
	in.metrics.batch.Observe(float64(len(todo)))
	in.inHand.Stage(stageLoad)
	st, m := decision.NewState(), in.memory
	st.RefusedRecently = m.refused.Contains
	for _, key := range in.own {
		st.TakenKeys[key.PublicKey] = true
	}
	epoch, complete := in.guard.Epoch()
	now := in.now()
	st.Epoch, st.Mode = epoch, m.begin(now, epoch, complete)
	if st.Mode == decision.Optimistic {
		for i := range todo {
			if todo[i].Refusal != nil {
				continue // refused for what it says itself: no state is needed
			}
			t := todo[i].Request.Target
			if s := m.of(t, now); s != nil {
				st.Services[t], st.Remembered[t] = s, true
			}
		}
	}
	return st, in.store.ledger.Load(ctx, todo, st, st.Mode == decision.Pessimistic)
}

// confirm confirms everything that the answers rest on, and reads what else they need: earlier
// refusals, the limits of an app, earlier keys.
func (in *intake) confirm(ctx context.Context, b *decision.Batch) error {
	in.inHand.Stage(stageLoad)
	if err := in.confirmState(ctx, b); err != nil {
		return err
	}
	targets, lookBack := b.NeedEarlierKeys(&in.verifications)
	var err error
	b.EarlierKeys, err = in.store.ledger.Previous(ctx, targets, lookBack)
	return err
}

func (in *intake) confirmState(ctx context.Context, b *decision.Batch) error {
	for {
		if err := in.confirmMemory(ctx, b); err != nil {
			return err
		}
		groups := slices.DeleteFunc(slices.Clone(b.Groups), func(g *decision.Group) bool { return !g.NeedsRefusals })
		if len(groups) == 0 {
			if again, err := in.limit(ctx, b); err != nil || !again {
				return err
			}
			continue
		}
		targets := make([]events.Target, len(groups))
		for i, g := range groups {
			targets[i] = g.Target
		}
		found, err := in.lookUp(ctx, targets)
		if err != nil {
			return err
		}
		for t, one := range found {
			if b.State.Refusals[t] = nil; one != nil {
				b.State.Refusals[t] = one
			}
		}
		b.DecideAgain(groups)
	}
}

// confirmMemory reads the state behind every answer that needs no commit, and decides again if it
// is not the state that was remembered.
func (in *intake) confirmMemory(ctx context.Context, b *decision.Batch) error {
	asked, stale := false, 0
	for groups := b.Unconfirmed(); len(groups) > 0; groups = b.Unconfirmed() {
		fresh := decision.NewState()
		fresh.Masters = b.State.Masters
		var requests []decision.Incoming
		for _, g := range groups {
			requests = append(requests, g.Requests...)
			// A service that was not found may have been bound since, with the key of this very
			// request.
			if was := b.State.Services[g.Target]; was != nil && !b.State.Remembered[g.Target] {
				fresh.Services[g.Target] = was
			}
		}
		if err := in.store.ledger.Load(ctx, requests, fresh, true); err != nil {
			return err
		}
		for _, g := range b.Correct(groups, fresh) {
			if b.State.Remembered[g.Target] && in.memory.forget(g.Target, in.now()) {
				stale++
			}
		}
		asked = true
	}
	in.memory.countStale(in.now(), stale, b)
	if !asked {
		return nil
	}
	return in.guard.Same(ctx, b.State.Epoch) // asked last, after everything was read
}

// An app's Master Key may bind a number of services, and make a number of changes a minute and a
// day. The counts are in the database, so all replicas share them. Only what is committed counts,
// so only the holder of the Master Key can use them up.
//
//	first binding              counts as a service
//	reset, binding again       counts as a change
//	first reset in a day       counts as nothing
//	first reset since the Master Key was replaced, and each revocation
//	                           counts as nothing
//
// What counts as nothing is always allowed: a limit never delays recovery.
//
// A batch without such requests reads and writes none of this. Two replicas that decide at the same
// time may each allow the last change.

// limit marks requests beyond an app's limits, and decides them again. It reports whether there
// were any.
func (in *intake) limit(ctx context.Context, b *decision.Batch) (again bool, err error) {
	wanted := b.Countable()
	if len(wanted) == 0 {
		return false, nil
	}
	uses, err := in.usesOf(ctx, in.policy.rules(), wanted)
	if err != nil {
		return false, err
	}
	resets, err := in.store.ledger.LastResets(ctx, wanted)
	if err != nil {
		return false, err
	}
	beyond := b.ApplyLimits(wanted, uses, resets)
	b.DecideAgain(beyond)
	return len(beyond) > 0, nil
}

// usesOf reads what the apps have used. A commit that is under way counts too: near a limit, usesOf
// waits for it.
func (in *intake) usesOf(ctx context.Context, rules decision.Rules, wanted []decision.Countable) (map[events.AppID]*decision.AppUse, error) {
	uses, err := in.store.ledger.Uses(ctx, wanted)
	if err != nil || in.await == nil || !rules.Near(uses, wanted, MaxBatch) {
		return uses, err
	}
	if err := in.await(ctx); err != nil {
		return nil, err
	}
	return in.store.ledger.Uses(ctx, wanted)
}
