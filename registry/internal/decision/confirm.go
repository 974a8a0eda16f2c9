package decision

import (
	"maps"
	"slices"
)

// Unconfirmed returns the groups with an outcome that rests on remembered state and that no commit
// confirms. If two services want one key, the state of every service in the batch may decide which
// one gets it.
func (b *Batch) Unconfirmed() (groups []*Group) {
	contested := slices.ContainsFunc(b.Groups, func(g *Group) bool { return g.wonByOthers != nil })
	for _, g := range b.Groups {
		if !g.confirmed && (contested || g.needsConfirming()) {
			groups = append(groups, g)
		}
	}
	return groups
}

// Correct replaces remembered state by what was read, and decides again the groups for which the
// two differ. It returns the groups whose service was remembered in another state.
func (b *Batch) Correct(groups []*Group, fresh *State) (stale []*Group) {
	var again []*Group
	for _, g := range groups {
		g.confirmed = true
		was, is := b.State.Services[g.Target], fresh.Services[g.Target]
		moved := (was == nil) != (is == nil) || was != nil && !was.Equal(is)
		if moved {
			stale = append(stale, g)
			g.Begin(is)
		}
		if moved || fresh.used(g) {
			again = append(again, g)
		}
		b.State.Services[g.Target] = is
	}
	maps.Copy(b.State.Committed, fresh.Committed)
	maps.Copy(b.State.TakenKeys, fresh.TakenKeys)
	b.DecideAgain(again)
	return stale
}

// DecideAgain decides groups again of which more is known now.
func (b *Batch) DecideAgain(again []*Group) {
	if len(again) == 0 {
		return
	}
	for _, g := range b.Groups {
		if g.wonByOthers == nil {
			continue
		}
		if g.wonByOthers = nil; !slices.Contains(again, g) {
			again = append(again, g) // the service that had the key may not have it now
		}
	}
	b.decideAll(again)
}

// used reports whether any key or nonce of these requests was used before.
func (st *State) used(g *Group) bool {
	return slices.ContainsFunc(g.Requests, func(in Incoming) bool {
		_, committed := st.Committed[RequestID{g.Target, in.Request.Nonce}]
		return committed || st.TakenKeys[in.Request.NewKey]
	})
}
