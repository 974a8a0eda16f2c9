package decision

import (
	"iter"
	"slices"

	"omiappreg.org/keyrotation/events"
)

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
	// wonByOthers: keys that another service registers in this batch, and the places of the requests
	// that do.
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

// Once reports whether key is seen for the first time.
func Once[K comparable](seen map[K]bool, key K) bool {
	if seen[key] {
		return false
	}
	seen[key] = true
	return true
}
