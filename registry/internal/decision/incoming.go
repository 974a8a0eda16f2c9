package decision

import (
	"errors"
	"time"

	"omiappreg.org/keyrotation/events"
)

// Incoming is one request as it came out of the stream.
type Incoming struct {
	Request  *events.Request
	Refusal  *events.Refusal // by the first check, if it failed
	Payload  []byte
	StoredAt int64 // when JetStream stored it, seconds since the Unix epoch
	// Stored is the same time, as precisely as the stream has it: it tells messages with the same
	// bytes apart.
	Stored      time.Time
	Index       int   // its place in the batch
	Place       Place // in the stream; zero: not known
	Redelivered bool  // it was delivered before, so it may have been answered

	// Outproved: another service's request proves that it has this new key, and this request
	// doesn't.
	Outproved bool
}

// bringsKey reports whether the request is of a kind that has a new key.
func (in *Incoming) bringsKey() bool { return in.Request.Kind != events.Revocation }

// NewIncoming parses a message. Its request is nil if the subject names no service.
func NewIncoming(subject string, payload []byte, storedAt int64, index int) Incoming {
	one := Incoming{Payload: payload, StoredAt: storedAt, Index: index}
	request, err := events.ParseRequest(subject, payload)
	if errors.As(err, &one.Refusal) || err == nil {
		one.Request = request
	}
	return one
}

// If the policy asks for no proof, anyone who has heard of an announced key can claim it. So among
// requests that were handed over together, a request that proves possession of the new key wins
// over other services' requests for that key without a proof, even if the stream stored those
// first. The proof shows whose key it is, whether or not the request stands.
//
// Earlier decisions hold: a claim without a proof that another replica or an earlier pull has
// committed stands.

// MarkOutproved marks the requests without a proof whose new key belongs to another service's
// request, as its proof shows.
func MarkOutproved(list []Incoming, origin string) {
	bare := map[events.PublicKey]bool{} // keys that are requested without a proof
	for i := range list {
		if r := list[i].Request; asksForKey(&list[i]) && r.Proof.IsZero() {
			bare[r.NewKey] = true
		}
	}
	if len(bare) == 0 {
		return // the usual case
	}
	proven := map[events.PublicKey][]events.Target{}
	for i := range list {
		if r := list[i].Request; asksForKey(&list[i]) && bare[r.NewKey] && proves(r, origin) {
			proven[r.NewKey] = append(proven[r.NewKey], r.Target)
		}
	}
	for i := range list {
		if r := list[i].Request; asksForKey(&list[i]) && r.Proof.IsZero() {
			for _, by := range proven[r.NewKey] {
				list[i].Outproved = list[i].Outproved || by != r.Target
			}
		}
	}
}

func asksForKey(in *Incoming) bool {
	return in.Request != nil && in.Refusal == nil && !in.Request.NewKey.IsZero()
}

// proves reports whether a request shows that the holder of the new key wants it for this service.
// A proof over data that does not name the service shows nothing: anyone can sign the same data for
// another service.
func proves(r *events.Request, origin string) bool {
	return !r.App.IsZero() && !r.Service.IsZero() && r.NamesItsTarget() && r.IsFor(origin) &&
		!r.Proof.IsZero() && r.NewKey.Verify(r.Signed, r.Proof)
}
