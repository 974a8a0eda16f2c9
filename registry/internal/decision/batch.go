package decision

import (
	"iter"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
)

// Batch decides requests of many services: those of each service in their order, the services in
// parallel.
type Batch struct {
	issuer Issuer
	At     time.Time // of the decision
	State  *State
	Groups []*Group
	OnHold []Incoming // not decided: the database lacks changes of their services

	// EarlierKeys: of the services that [Batch.NeedEarlierKeys] named.
	EarlierKeys map[events.Target][]PastKey

	weak map[events.PublicKey]bool // new keys that were checked, and whether they are weak
}

// NewBatch groups requests, which are in the order of the stream, by their services. at is the time
// of the decision.
func NewBatch(issuer Issuer, at time.Time, st *State, requests []Incoming) *Batch {
	b := &Batch{issuer: issuer, At: at, State: st, weak: map[events.PublicKey]bool{}}
	byTarget := make(map[events.Target]*Group, len(requests))
	for _, in := range requests {
		target := in.Request.Target
		g := byTarget[target]
		if g == nil {
			g = &Group{Target: target, confirmed: st.Mode == Pessimistic}
			g.Begin(st.Services[target])
			byTarget[target] = g
			b.Groups = append(b.Groups, g)
		}
		g.Requests = append(g.Requests, in)
	}
	return b
}

// Decide fills in every group's outcomes.
func (b *Batch) Decide() { b.decideAll(b.Groups) }

// decideAll decides some of the groups and every group that depends on them.
func (b *Batch) decideAll(groups []*Group) {
	for len(groups) > 0 {
		b.issuer.Parallel(len(groups), 1, func(i int) { b.decideGroup(groups[i]) })
		for g := b.awardKeys(); g != nil; g = b.awardKeys() {
			b.decideGroup(g)
		}
		groups = b.checkForWeakKeys()
	}
}

func (b *Batch) decideGroup(g *Group) {
	d := decider{
		Issuer: b.issuer, now: b.At.Unix(),
		target: g.Target, master: b.State.Masters[g.Target.App],
		committed: func(n events.Nonce) (Prior, bool) {
			p, ok := b.State.Committed[RequestID{g.Target, n}]
			return p, ok
		},
		taken: func(k events.PublicKey, index int) bool {
			by, won := g.wonByOthers[k]
			return b.State.TakenKeys[k] || won && by < index
		},
		refusedRecently: func(n events.Nonce) bool {
			return b.State.RefusedRecently != nil && b.State.RefusedRecently(RequestID{g.Target, n})
		},
		service: g.Was, beyondLimit: g.beyondLimit,
		weak: b.weak,
	}
	d.refusals, d.refusalsRead = b.State.Refusals[g.Target]
	before := g.Outcomes
	g.Outcomes = make([]Outcome, 0, len(g.Requests))
	for i, in := range g.Requests {
		var earlier *Outcome
		if before != nil {
			earlier = &before[i]
		}
		g.Outcomes = append(g.Outcomes, d.decide(in, earlier))
	}
	g.Service, g.Details, g.NeedsRefusals = d.service, d.details, d.needsRefusals
}

// awardKeys finds the first request of the batch, in the order of the stream, that passed with a
// key which an earlier request registered for another service. It notes in the request's group
// who won the key, and returns the group, which is then decided again; the requests before it
// stand. One key names one service, and the first request gets it.
func (b *Batch) awardKeys() *Group {
	registered := b.registered()
	var loser *Group
	index := 0
	for _, g := range b.Groups {
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			first, ok := registered[o.In.Request.NewKey]
			if !ok || !o.passedKeyCheck() || first.group == g || first.index > o.In.Index {
				continue
			}
			if loser == nil || o.In.Index < index {
				loser, index = g, o.In.Index
			}
		}
	}
	if loser != nil {
		if loser.wonByOthers == nil {
			loser.wonByOthers = map[events.PublicKey]int{}
		}
		for key, first := range registered {
			if first.group != loser && first.index < index {
				loser.wonByOthers[key] = first.index
			}
		}
	}
	return loser
}

// registration is the request that registers a key first.
type registration struct {
	group *Group
	index int
}

// registered returns the keys that the batch registers if its outcomes stand.
func (b *Batch) registered() map[events.PublicKey]registration {
	first := map[events.PublicKey]registration{}
	for _, g := range b.Groups {
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			if o.Verdict != Committed || o.Event.NewKey.IsZero() {
				continue
			}
			if other, ok := first[o.Event.NewKey]; !ok || o.In.Index < other.index {
				first[o.Event.NewKey] = registration{g, o.In.Index}
			}
		}
	}
	return first
}

// checkForWeakKeys checks the new keys of all requests that passed so far for weak ones. It
// checks them together because that costs least. It returns the groups that have one, which are
// decided again.
func (b *Batch) checkForWeakKeys() (again []*Group) {
	var keys []events.PublicKey
	for _, g := range b.Groups {
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			if !o.In.bringsKey() || !o.passedKeyCheck() && o.Reason != events.KeyInUse {
				continue
			}
			key := o.In.Request.NewKey
			if _, known := b.weak[key]; !known {
				b.weak[key], keys = false, append(keys, key)
			}
		}
	}
	weak := events.WeakKeys(keys)
	for key := range weak {
		b.weak[key] = true
	}
	for _, g := range b.Groups {
		isWeak := func(in Incoming) bool { return in.bringsKey() && weak[in.Request.NewKey] }
		if len(weak) > 0 && slices.ContainsFunc(g.Requests, isWeak) {
			again = append(again, g)
		}
	}
	return again
}

// CountChanges counts the services that have anything to commit.
func (b *Batch) CountChanges() (n int) {
	for _, g := range b.Groups {
		if g.Changed() {
			n++
		}
	}
	return n
}

// RequestsOf returns the requests of these services, those of each in their order.
func (b *Batch) RequestsOf(services map[events.Target]bool) (requests []Incoming) {
	for _, g := range b.Groups {
		if services[g.Target] {
			requests = append(requests, g.Requests...)
		}
	}
	return requests
}

// Group is the requests of one service in a batch, and their outcomes.
type Group struct {
	Target   events.Target
	Requests []Incoming // in the order of the stream
	Was      Service    // before the outcomes
	Existed  bool       // before the outcomes

	Outcomes []Outcome  // one for each request, in the same order
	Service  Service    // after the outcomes
	Details  NewDetails // that the outcomes set
	// NeedsRefusals: the outcomes depend on earlier refusals, which are not looked up yet.
	NeedsRefusals bool

	confirmed bool // everything that the outcomes rest on was read from the database
	// beyondLimit: requests beyond a limit of the app, by their places in the batch.
	beyondLimit map[int]overLimit
	// wonByOthers: keys that another service registers in this batch, and the places of the
	// requests that do.
	wonByOthers   map[events.PublicKey]int
	mayVerify     int   // how many refusals may still be compared with earlier keys,
	sequencesBack int64 // and with the keys of how many sequences
}

// Begin sets the state on which the group is decided; nil: the service was never bound.
func (g *Group) Begin(s *Service) {
	if g.Was, g.Existed = (Service{}), s != nil; s != nil {
		g.Was = *s
	}
}

// Changed reports whether the group has anything to commit.
func (g *Group) Changed() bool { return g.Service.Sequence != g.Was.Sequence }

// ByMaster reports whether a change of the group rests on the app's Master Key.
func (g *Group) ByMaster() bool {
	return slices.ContainsFunc(g.Outcomes, func(o Outcome) bool {
		return o.Verdict == Committed && o.In.Request.Kind.ByMasterKey()
	})
}

// needsConfirming reports whether a request is answered without a commit, for another reason than
// its own content. The commit confirms all other answers.
func (g *Group) needsConfirming() bool {
	for i := range g.Outcomes {
		if o := &g.Outcomes[i]; o.Verdict != Committed && o.In.Refusal == nil {
			return true
		}
	}
	return false
}

// CountRequests counts the requests of groups.
func CountRequests(groups []*Group) (n int) {
	for _, g := range groups {
		n += len(g.Requests)
	}
	return n
}

// Changes yields the committed outcomes of the groups.
func Changes(groups []*Group) iter.Seq2[*Group, *Outcome] {
	return func(yield func(*Group, *Outcome) bool) {
		for _, g := range groups {
			for i := range g.Outcomes {
				if g.Outcomes[i].Verdict == Committed && !yield(g, &g.Outcomes[i]) {
					return
				}
			}
		}
	}
}
