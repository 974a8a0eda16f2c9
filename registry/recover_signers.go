package registry

import (
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
)

// Signer is a key of the registry's on whose signature recovered changes rest.
type Signer struct {
	PublicKey events.PublicKey `json:"public_key"`
	// Earlier says that it is not the key with which the registry signs now. If that was stolen and given no end, they may be a thief's.
	Earlier bool `json:"earlier"`
	Changes int  `json:"changes"`
	// Newest are those that the stream got last, so many at most.
	Newest []SignedChange `json:"newest"`
}

// SignedChange is a recovered change, and where the event is that says so.
type SignedChange struct {
	Target   string           `json:"target"`
	Sequence int64            `json:"sequence"`
	Event    events.EventKind `json:"event"`
	StoredAt time.Time        `json:"stored_at"`
	Place    uint64           `json:"stream_sequence"`
}

// newestOfSigner is how many changes are named of each key.
const newestOfSigner = 1000

// Earlier returns how many changes rest on the signatures of keys with which the registry signs no more.
func (r *Recovered) Earlier() (n int) {
	for _, s := range r.Signers {
		if s.Earlier {
			n += s.Changes
		}
	}
	return n
}

// signed notes on whose signature a change rests.
func (r *recoverer) signed(e *streamEvent) {
	list := &r.report.Signers
	i := slices.IndexFunc(*list, func(s Signer) bool { return s.PublicKey == e.signer })
	if i < 0 {
		i = len(*list)
		*list = append(*list, Signer{PublicKey: e.signer, Earlier: e.signer != r.how.Key.Public()})
	}
	s := &(*list)[i]
	s.Changes++
	if s.Newest = append(s.Newest, SignedChange{
		e.event.Target.String(), e.event.Sequence, e.event.Event, e.stored.UTC(), e.place,
	}); len(s.Newest) == 2*newestOfSigner {
		s.Newest = slices.Clone(s.Newest[newestOfSigner:])
	}
}

// trim leaves those that the stream got last.
func (s *Signer) trim() {
	slices.SortStableFunc(s.Newest, func(a, b SignedChange) int { return a.StoredAt.Compare(b.StoredAt) })
	s.Newest = s.Newest[max(0, len(s.Newest)-newestOfSigner):]
}
