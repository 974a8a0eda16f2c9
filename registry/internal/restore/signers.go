package restore

import (
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
)

// Signer is a key of the registry whose signatures recovered changes rest on.
type Signer struct {
	PublicKey events.PublicKey
	Earlier   bool // the registry no longer signs with it
	Changes   int
	Newest    []SignedChange // the last of these changes in the stream, up to a limit
}

// SignedChange is a recovered change, and the place of its event.
type SignedChange struct {
	Target   string
	Sequence int64
	Event    events.EventKind
	StoredAt time.Time
	Place    uint64
}

// newestOfSigner is how many changes are listed for each key.
const newestOfSigner = 1000

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
