package registry

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"omiappreg.org/keyrotation/events"
)

// group is the requests of one service in a batch, and what became of them.
type group struct {
	target   events.Target
	base     int64 // the service's sequence in the database
	existed  bool
	requests []incoming
	lost     map[events.PublicKey]bool // keys that another service claims earlier in this batch

	outcomes []outcome
	service  service // after the outcomes
}

// changed reports whether the group has anything to commit.
func (g *group) changed() bool { return g.service.sequence != g.base }

// batch decides requests of many services: each service's in their order, the services side by side.
type batch struct {
	policy Policy
	key    events.SigningKey
	now    int64
	state  *state
	groups []*group
}

func newBatch(policy Policy, key events.SigningKey, now int64, st *state, requests []incoming) *batch {
	b := &batch{policy: policy, key: key, now: now, state: st}
	byTarget := make(map[events.Target]*group, len(requests))
	for _, in := range requests {
		target := in.request.Target
		g := byTarget[target]
		if g == nil {
			g = &group{target: target, lost: map[events.PublicKey]bool{}}
			if s := st.services[target]; s != nil {
				g.base, g.existed = s.sequence, true
			}
			byTarget[target] = g
			b.groups = append(b.groups, g)
		}
		g.requests = append(g.requests, in)
	}
	return b
}

// decide fills in every group's outcomes.
func (b *batch) decide() {
	parallel(len(b.groups), func(i int) { b.decideGroup(b.groups[i]) })
	for g := b.rival(); g != nil; g = b.rival() {
		b.decideGroup(g)
	}
}

func (b *batch) decideGroup(g *group) {
	d := decider{
		policy: b.policy, key: b.key, now: b.now,
		target: g.target, master: b.state.masters[g.target.App],
		committed: func(n events.Nonce) (prior, bool) {
			p, ok := b.state.committed[requestID{g.target, n}]
			return p, ok
		},
		taken:    func(k events.PublicKey) bool { return b.state.takenKeys[k] || g.lost[k] },
		answered: map[events.Nonce]prior{},
	}
	if s := b.state.services[g.target]; s != nil {
		d.service = *s
	}
	g.outcomes = make([]outcome, 0, len(g.requests))
	for _, in := range g.requests {
		g.outcomes = append(g.outcomes, d.decide(in))
	}
	g.service = d.service
}

// rival finds the first request of the batch, in the stream's order, that registers a key which an earlier request
// registered for another service, and returns its group with that key marked as lost. Deciding that group again
// settles it; what comes before the request stands. One key names one service, whoever asks first.
func (b *batch) rival() *group {
	type claim struct {
		group *group
		index int
	}
	first := map[events.PublicKey]claim{}
	var loser claim
	var key events.PublicKey
	for _, g := range b.groups {
		for i := range g.outcomes {
			o := &g.outcomes[i]
			if o.verdict != committed || o.event.NewKey.IsZero() {
				continue
			}
			mine := claim{g, o.in.index}
			other, ok := first[o.event.NewKey]
			if !ok {
				first[o.event.NewKey] = mine
				continue
			}
			if other.index > mine.index {
				first[o.event.NewKey], mine = mine, other
			}
			if loser.group == nil || mine.index < loser.index {
				loser, key = mine, o.event.NewKey
			}
		}
	}
	if loser.group != nil {
		loser.group.lost[key] = true
	}
	return loser.group
}

// unsettled returns the services with a refusal whose reason may still become superseded_key.
func (b *batch) unsettled() []events.Target {
	var targets []events.Target
	for _, g := range b.groups {
		if slices.ContainsFunc(g.outcomes, func(o outcome) bool { return o.mayBeSuperseded() }) {
			targets = append(targets, g.target)
		}
	}
	return targets
}

// answer makes the reasons final and signs the receipts of refusals. previous holds earlier keys of the services
// that unsettled named.
func (b *batch) answer(previous map[events.Target][]events.PublicKey) {
	parallel(len(b.groups), func(i int) {
		g := b.groups[i]
		for j := range g.outcomes {
			o := &g.outcomes[j]
			if o.mayBeSuperseded() {
				o.checkSuperseded(previous[g.target])
			}
			o.answer(b.policy.Origin, b.now, b.key)
		}
	})
}

// parallel runs do(0) … do(n-1) on all cores, and returns when all are done. A panic of one is the caller's.
func parallel(n int, do func(i int)) {
	workers := min(n, runtime.GOMAXPROCS(0))
	if workers <= 1 {
		for i := range n {
			do(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	panics := make(chan any, workers)
	for range workers {
		wg.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					panics <- v
				}
			}()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	wg.Wait()
	select {
	case v := <-panics:
		panic(v)
	default:
	}
}
