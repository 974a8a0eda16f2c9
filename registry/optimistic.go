package registry

import (
	"context"
	"maps"
	"slices"

	"omiappreg.org/keyrotation/events"
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

// mode says what a batch is decided on. [memory.begin] chooses it for each batch.
type mode int

const (
	// optimistic: on what this replica remembers. A service is in the state in which this replica
	// left it, and no key and no nonce was used before.
	optimistic mode = iota
	// pessimistic: on what the database says. All of it is read before the decision.
	pessimistic
)

// load returns the state to decide on: what is remembered, and for the rest what the database says.
func (in *intake) load(ctx context.Context, todo []incoming) (*state, error) {
	st, m := newState(), in.memory
	st.refused = m.wasRefused
	for _, key := range in.own {
		st.takenKeys[key.PublicKey] = true
	}
	doubts, complete := in.fence.now()
	now := in.now()
	st.doubts, st.mode = doubts, m.begin(now, doubts, complete)
	if st.mode == optimistic {
		for i := range todo {
			if todo[i].refusal != nil {
				continue // refused for what it says itself: no state is needed
			}
			t := todo[i].request.Target
			if s := m.of(t, now); s != nil {
				st.services[t], st.remembered[t] = s, true
			}
		}
	}
	return st, in.store.load(ctx, todo, st, st.mode == pessimistic)
}

// complete confirms everything that the answers rest on.
func (in *intake) complete(ctx context.Context, b *batch) error {
	for {
		if err := in.confirm(ctx, b); err != nil {
			return err
		}
		groups := slices.DeleteFunc(slices.Clone(b.groups), func(g *group) bool { return !g.asks })
		if len(groups) == 0 {
			if again, err := in.limit(ctx, b); err != nil || !again {
				return err
			}
			continue
		}
		targets := make([]events.Target, len(groups))
		for i, g := range groups {
			targets[i] = g.target
		}
		if err := in.lookUp(ctx, b.state.told, targets); err != nil {
			return err
		}
		b.decideAgain(groups)
	}
}

// confirm reads the state behind every answer that needs no commit, and decides again if it is not
// the state that was remembered.
func (in *intake) confirm(ctx context.Context, b *batch) error {
	asked, stale := false, 0
	for groups := b.doubtful(); len(groups) > 0; groups = b.doubtful() {
		fresh := newState()
		fresh.masters = b.state.masters
		var requests []incoming
		for _, g := range groups {
			requests = append(requests, g.requests...)
			// A service that was not found may have been bound since, with the key of this very
			// request.
			if was := b.state.services[g.target]; was != nil && !b.state.remembered[g.target] {
				fresh.services[g.target] = was
			}
		}
		if err := in.store.load(ctx, requests, fresh, true); err != nil {
			return err
		}
		for _, g := range b.correct(groups, fresh) {
			if b.state.remembered[g.target] && in.memory.forget(g.target, in.now()) {
				stale++
			}
		}
		asked = true
	}
	in.memory.countStale(in.now(), stale, b)
	if !asked {
		return nil
	}
	return in.fence.same(ctx, b.state.doubts) // asked last, after everything was read
}

// doubtful returns the groups with an answer that rests on remembered state. If two services want
// one key, the state of every service in the batch may decide which one gets it.
func (b *batch) doubtful() (groups []*group) {
	rivals := slices.ContainsFunc(b.groups, func(g *group) bool { return g.lost != nil })
	for _, g := range b.groups {
		if !g.checked && (rivals || g.restsOnState()) {
			groups = append(groups, g)
		}
	}
	return groups
}

// correct replaces remembered state by what was read, and decides again the groups for which the
// two differ. It returns the groups whose service was remembered in another state.
func (b *batch) correct(groups []*group, fresh *state) (stale []*group) {
	var again []*group
	for _, g := range groups {
		g.checked = true
		was, is := b.state.services[g.target], fresh.services[g.target]
		moved := (was == nil) != (is == nil) || was != nil && !was.equal(is)
		if moved {
			stale = append(stale, g)
			g.begin(is)
		}
		if moved || fresh.used(g) {
			again = append(again, g)
		}
		b.state.services[g.target] = is
	}
	maps.Copy(b.state.committed, fresh.committed)
	maps.Copy(b.state.takenKeys, fresh.takenKeys)
	b.decideAgain(again)
	return stale
}

// decideAgain decides groups again of which more is known now.
func (b *batch) decideAgain(again []*group) {
	if len(again) == 0 {
		return
	}
	for _, g := range b.groups {
		if g.lost == nil {
			continue
		}
		if g.lost = nil; !slices.Contains(again, g) {
			again = append(again, g) // the service that had the key may not have it now
		}
	}
	b.decideAll(again)
}

// used reports whether any key or nonce of these requests was used before.
func (st *state) used(g *group) bool {
	return slices.ContainsFunc(g.requests, func(in incoming) bool {
		_, committed := st.committed[requestID{g.target, in.request.Nonce}]
		return committed || st.takenKeys[in.request.NewKey]
	})
}
