package registry

import (
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
)

// group is the requests of one service in a batch, and their outcomes.
type group struct {
	target   events.Target
	was      service // before the outcomes
	existed  bool
	checked  bool // everything that the outcomes rest on was read from the database
	requests []incoming
	limited  map[int]limited // requests beyond a limit of the app, by their places
	// lost: keys that another service registers in this batch, and by which request of it.
	lost map[events.PublicKey]int

	outcomes []outcome
	asks     bool    // the outcomes depend on earlier refusals, which are not looked up yet
	service  service // after the outcomes
	details  newDetails
	looks    int   // how many refusals may still be compared with earlier keys,
	lookBack int64 // and with the keys of how many sequences
}

// changed reports whether the group has anything to commit.
func (g *group) changed() bool { return g.service.sequence != g.was.sequence }

// restsOnState reports whether a request is answered without a commit, for another reason than its
// own content.
func (g *group) restsOnState() bool {
	for i := range g.outcomes {
		if o := &g.outcomes[i]; o.verdict != committed && o.in.refusal == nil {
			return true
		}
	}
	return false
}

// byMaster reports whether a change of the group rests on the app's Master Key.
func (g *group) byMaster() bool {
	return slices.ContainsFunc(g.outcomes, func(o outcome) bool { return o.verdict == committed && o.in.request.Kind.ByMasterKey() })
}

// requestsOf counts the requests of groups.
func requestsOf(groups []*group) (n int) {
	for _, g := range groups {
		n += len(g.requests)
	}
	return n
}

// begin sets the state on which the group is decided; nil: the service was never bound.
func (g *group) begin(s *service) {
	if g.was, g.existed = (service{}), s != nil; s != nil {
		g.was = *s
	}
}

// batch decides requests of many services: those of each service in their order, the services in
// parallel.
type batch struct {
	policy Policy
	key    events.SigningKey
	now    int64
	state  *state
	groups []*group
	at     time.Time  // the same as now, by the clock
	held   []incoming // not decided: the database lacks changes of their services

	previous map[events.Target][]pastKey // of the services that unsettled named
}

func newBatch(policy Policy, key events.SigningKey, now int64, st *state, requests []incoming) *batch {
	b := &batch{policy: policy, key: key, now: now, state: st}
	byTarget := make(map[events.Target]*group, len(requests))
	for _, in := range requests {
		target := in.request.Target
		g := byTarget[target]
		if g == nil {
			g = &group{target: target, checked: st.mode == pessimistic}
			g.begin(st.services[target])
			byTarget[target] = g
			b.groups = append(b.groups, g)
		}
		g.requests = append(g.requests, in)
	}
	return b
}

// decide fills in every group's outcomes.
func (b *batch) decide() {
	b.decideAll(b.groups)
}

// decideAll decides some of the groups and every group that depends on them.
func (b *batch) decideAll(groups []*group) {
	for len(groups) > 0 {
		parallel.Each(len(groups), 1, func(i int) { b.decideGroup(groups[i]) })
		for g := b.rival(); g != nil; g = b.rival() {
			b.decideGroup(g)
		}
		groups = b.findWeak()
	}
}

// findWeak checks the new keys of all requests that passed so far for weak ones. It checks them
// together because that costs least. It returns the groups that have one, which are decided again.
func (b *batch) findWeak() (again []*group) {
	var keys []events.PublicKey
	for _, g := range b.groups {
		for i := range g.outcomes {
			o := &g.outcomes[i]
			if o.in.request.Kind == events.Revocation || !o.passedKeyCheck() && o.reason != events.KeyInUse {
				continue
			}
			key := o.in.request.NewKey
			if _, known := b.state.weak[key]; !known {
				b.state.weak[key], keys = false, append(keys, key)
			}
		}
	}
	weak := events.WeakKeys(keys)
	for key := range weak {
		b.state.weak[key] = true
	}
	for _, g := range b.groups {
		if len(weak) > 0 && slices.ContainsFunc(g.requests, func(in incoming) bool { return in.request.Kind != events.Revocation && weak[in.request.NewKey] }) {
			again = append(again, g)
		}
	}
	return again
}

func (b *batch) decideGroup(g *group) {
	d := decider{
		policy: b.policy, key: b.key, now: b.now,
		target: g.target, master: b.state.masters[g.target.App],
		committed: func(n events.Nonce) (prior, bool) {
			p, ok := b.state.committed[requestID{g.target, n}]
			return p, ok
		},
		taken: func(k events.PublicKey, index int) bool {
			by, lost := g.lost[k]
			return b.state.takenKeys[k] || lost && by < index
		},
		recently: func(n events.Nonce) bool { return b.state.refused != nil && b.state.refused(requestID{g.target, n}) },
		service:  g.was, limited: g.limited,
		weak: b.state.weak,
	}
	d.told, d.looked = b.state.told[g.target]
	before := g.outcomes
	g.outcomes = make([]outcome, 0, len(g.requests))
	for i, in := range g.requests {
		var earlier *outcome
		if before != nil {
			earlier = &before[i]
		}
		g.outcomes = append(g.outcomes, d.decide(in, earlier))
	}
	g.service, g.details, g.asks = d.service, d.details, d.asks
}

// rival finds the first request of the batch, in the order of the stream, that passed with a key
// which an earlier request registered for another service. It marks that key as lost and returns
// the request's group, which is then decided again; the requests before it stand. One key names one
// service, and the first request gets it.
func (b *batch) rival() *group {
	registered := b.registered()
	var loser *group
	index := 0
	for _, g := range b.groups {
		for i := range g.outcomes {
			o := &g.outcomes[i]
			first, ok := registered[o.in.request.NewKey]
			if !ok || !o.passedKeyCheck() || first.group == g || first.index > o.in.index {
				continue
			}
			if loser == nil || o.in.index < index {
				loser, index = g, o.in.index
			}
		}
	}
	if loser != nil {
		if loser.lost == nil {
			loser.lost = map[events.PublicKey]int{}
		}
		for key, first := range registered {
			if first.group != loser && first.index < index {
				loser.lost[key] = first.index
			}
		}
	}
	return loser
}

// registration is the request that registers a key first.
type registration struct {
	group *group
	index int
}

// registered returns the keys that the batch registers if its outcomes stand.
func (b *batch) registered() map[events.PublicKey]registration {
	first := map[events.PublicKey]registration{}
	for _, g := range b.groups {
		for i := range g.outcomes {
			o := &g.outcomes[i]
			if o.verdict != committed || o.event.NewKey.IsZero() {
				continue
			}
			if other, ok := first[o.event.NewKey]; !ok || o.in.index < other.index {
				first[o.event.NewKey] = registration{g, o.in.index}
			}
		}
	}
	return first
}

// unsettled returns the services with a refusal whose reason may still become superseded_key, and
// how many sequences back to look for each, within the limits on looks.
func (b *batch) unsettled(l *looks) (targets []events.Target, lookBack []int64) {
	for _, g := range b.groups {
		n := 0
		for i := range g.outcomes {
			if g.outcomes[i].mayBeSuperseded() {
				n++
			}
		}
		if n == 0 {
			continue
		}
		if g.looks, g.lookBack = l.take(b.now, g.target, n, g.service.sequence); g.looks > 0 {
			targets, lookBack = append(targets, g.target), append(lookBack, g.lookBack)
		}
	}
	return targets, lookBack
}

// answer makes the reasons final and signs the receipts of refusals. previous holds earlier keys of
// the services that unsettled named.
func (b *batch) answer(previous map[events.Target][]pastKey) {
	nonces := newRefusalNonces(b.key)
	parallel.Each(len(b.groups), 1, func(i int) {
		g := b.groups[i]
		for j := range g.outcomes {
			o := &g.outcomes[j]
			if g.looks > 0 && o.mayBeSuperseded() {
				g.looks--
				o.checkSuperseded(previous[g.target], g.lookBack)
			}
			o.answer(b.policy.Origin, b.now, b.key, nonces)
		}
	})
}
