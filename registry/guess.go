package registry

import (
	"context"
	"maps"
	"slices"

	"omiappreg.org/keyrotation/events"
)

// What is decided on a guess, and how it is made sure of:
//
//	memory ──▶ decide ──▶ all commit ──▶ compare-and-swap ──▶ stands
//	  ▲          ▲  └─ a refusal, a duplicate ─▶ read ─▶ as guessed ─▶ stands
//	  │          └────────────── otherwise ◀──────┘              │
//	  └──────── forgotten ◀── lost ◀─────────────────────────────┘
//
// So nobody is refused because of what is only remembered, and what is read for a refusal is what was read for every request
// before there was a memory.

// load returns the state to decide on: what is remembered, and for the rest what the database says.
func (in *intake) load(ctx context.Context, todo []incoming) (*state, error) {
	st, m := newState(), in.memory
	st.refused = m.wasRefused
	for _, key := range in.own {
		st.takenKeys[key.PublicKey] = true
	}
	var quiet bool
	if st.doubts, quiet = in.fence.now(); st.doubts != m.doubts {
		m.services.Purge()
		m.doubts = st.doubts
	}
	now := in.now()
	if st.certain = !quiet || now.Before(m.careful); !st.certain {
		for i := range todo {
			if todo[i].refusal != nil {
				continue // no state is needed to say so
			}
			t := todo[i].request.Target
			if s := m.of(t, now); s != nil {
				st.services[t], st.remembered[t] = s, true
			}
		}
	}
	return st, in.store.load(ctx, todo, st, st.certain)
}

// complete makes sure of all that the answers rest on.
func (in *intake) complete(ctx context.Context, b *batch) error {
	for {
		if err := in.makeSure(ctx, b); err != nil {
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

// makeSure reads what the answers rest on that end here, without a commit, and decides again where that is not what was guessed.
func (in *intake) makeSure(ctx context.Context, b *batch) error {
	asked, stale := false, 0
	for groups := b.doubtful(); len(groups) > 0; groups = b.doubtful() {
		fresh := newState()
		fresh.masters = b.state.masters
		var requests []incoming
		for _, g := range groups {
			requests = append(requests, g.requests...)
			// A service that was not found may have been bound since, with the key of this very request.
			if was := b.state.services[g.target]; was != nil && !b.state.remembered[g.target] {
				fresh.services[g.target] = was
			}
		}
		if err := in.store.load(ctx, requests, fresh, true); err != nil {
			return err
		}
		for _, g := range b.correct(groups, fresh) {
			if b.state.remembered[g.target] && in.memory.contest(g.target, in.now()) {
				stale++
			}
		}
		asked = true
	}
	in.memory.judge(in.now(), stale, b)
	if !asked {
		return nil
	}
	return in.fence.same(ctx, b.state.doubts) // after everything was read
}

// doubtful returns the groups with an answer that rests on a guess. Where two services want one key, all that was guessed of
// the batch decides who has it.
func (b *batch) doubtful() (groups []*group) {
	rivals := slices.ContainsFunc(b.groups, func(g *group) bool { return g.lost != nil })
	for _, g := range b.groups {
		if !g.checked && (rivals || g.restsOnState()) {
			groups = append(groups, g)
		}
	}
	return groups
}

// correct sets what was read in place of what was guessed, and decides again where the two differ. It returns the services of
// which another state was remembered.
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

// decideAgain decides groups of which more is known by now.
func (b *batch) decideAgain(again []*group) {
	if len(again) == 0 {
		return
	}
	for _, g := range b.groups {
		if g.lost == nil {
			continue
		}
		if g.lost = nil; !slices.Contains(again, g) {
			again = append(again, g) // whoever had the key may not have it now
		}
	}
	b.decideAll(again)
}

// used reports whether any key or nonce of these requests was.
func (st *state) used(g *group) bool {
	return slices.ContainsFunc(g.requests, func(in incoming) bool {
		_, committed := st.committed[requestID{g.target, in.request.Nonce}]
		return committed || st.takenKeys[in.request.NewKey]
	})
}
