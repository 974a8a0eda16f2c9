package registry

import (
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
)

// Signer is a key of the registry whose signatures recovered changes rest on.
type Signer struct {
	PublicKey events.PublicKey `json:"public_key"`
	// Earlier means that the registry no longer signs with this key. If the key was stolen and
	// given no end, the changes may be forged.
	Earlier bool `json:"earlier"`
	Changes int  `json:"changes"`
	// Newest are the last of these changes in the stream, up to a limit.
	Newest []SignedChange `json:"newest"`
}

// SignedChange is a recovered change, and the place of its event.
type SignedChange struct {
	Target   string           `json:"target"`
	Sequence int64            `json:"sequence"`
	Event    events.EventKind `json:"event"`
	StoredAt time.Time        `json:"stored_at"`
	Place    uint64           `json:"stream_sequence"`
}

// newestOfSigner is how many changes are listed for each key.
const newestOfSigner = 1000

// Earlier returns how many changes rest on signatures of keys with which the registry no longer
// signs.
func (r *Recovered) Earlier() (n int) {
	for _, s := range r.Signers {
		if s.Earlier {
			n += s.Changes
		}
	}
	return n
}

// signed notes whose signature a change rests on.
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

// trim keeps the last changes in the stream.
func (s *Signer) trim() {
	slices.SortStableFunc(s.Newest, func(a, b SignedChange) int { return a.StoredAt.Compare(b.StoredAt) })
	s.Newest = s.Newest[max(0, len(s.Newest)-newestOfSigner):]
}
