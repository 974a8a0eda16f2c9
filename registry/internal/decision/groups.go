package decision

import (
	"iter"

	"omiappreg.org/keyrotation/events"
)

// CountChanges counts the services that have anything to commit.
func (b *Batch) CountChanges() (n int) {
	for _, g := range b.Groups {
		if g.Changed() {
			n++
		}
	}
	return n
}

// RequestsOf returns the requests of the lost services, in their order.
func RequestsOf(b *Batch, lost map[events.Target]bool) []Incoming {
	var todo []Incoming
	for _, g := range b.Groups {
		if lost[g.Target] {
			todo = append(todo, g.Requests...)
		}
	}
	return todo
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

// Follow moves a service as an event says. Details that the event doesn't have stay empty.
func (g *Group) Follow(e *events.Invalidation) {
	s := &g.Service
	s.Status, s.Sequence, s.Key, s.ChangedAt = events.Active, e.Sequence, e.NewKey, e.Timestamp
	switch e.Event {
	case events.KeyRotation: // the time of the commit stands for that of the request
		s.Recent = withRecent(s.Recent, e.Timestamp)
	case events.ServiceRevocation:
		s.Status = events.Revoked
	case events.ServiceBinding:
		g.Details = NewDetails{new(e.Timestamp), new(""), new(""), new("")}
	case events.MasterReset:
	}
}
