package registry

import (
	"crypto/sha256"
	"slices"

	"omiappreg.org/keyrotation/events"
)

// service is the part of a service's present state that a decision depends on. The zero value
// is a service that was never bound.
type service struct {
	id        int64 // in the database; 0: it is not there yet
	status    events.ServiceStatus
	sequence  int64
	key       events.PublicKey // zero unless active
	changedAt int64            // time of the last change
	recent    []int64          // when JetStream stored the rotations of the last minute
	// place: of the last change's request; it never moves back within one stream.
	place place
	// signedAt: timestamp of the last request by the Master Key that was committed; 0: not known.
	signedAt int64
}

// place is a request's place in the stream of requests. The zero value is unknown.
type place struct {
	// stream: when the stream was created, nanoseconds since the Unix epoch; another stream counts
	// from 1 again.
	stream   int64
	sequence int64
}

// before reports whether p is known to be an earlier place of the same stream.
func (p place) before(o place) bool {
	return p.stream != 0 && p.stream == o.stream && p.sequence < o.sequence
}

// after returns the later of two places: of two streams, the one that was created later counts.
func (p place) after(o place) place {
	if o.stream > p.stream || o.stream == p.stream && o.sequence > p.sequence {
		return o
	}
	return p
}

// equal reports whether two states lead to the same decisions.
func (s *service) equal(o *service) bool {
	return s.id == o.id && s.status == o.status && s.sequence == o.sequence && s.key == o.key && s.changedAt == o.changedAt &&
		s.place == o.place && s.signedAt == o.signedAt && slices.Equal(s.recent, o.recent)
}

// details are the rest of what is kept of a service. No decision depends on them.
type details struct {
	boundAt                                   int64
	serviceType, endpointURL, providerReceipt string
}

// newDetails are the details that a change sets; nil: unchanged.
type newDetails struct {
	boundAt                                   *int64
	serviceType, endpointURL, providerReceipt *string
}

// sequence returns a service's sequence; 0: it was never bound.
func (st *state) sequence(t events.Target) int64 {
	if one := st.services[t]; one != nil {
		return one.sequence
	}
	return 0
}

func (s *service) active() bool { return s.status == events.Active }

// prior is a request that was committed before: what it asked for, and how it was answered.
type prior struct {
	digest       [sha256.Size]byte
	receiptNonce events.Nonce
	receipt      []byte
	event        events.EventKind // what it did, and the key that it brought
	key          events.PublicKey
}

// answered is a request that is committed in the batch at hand.
type answered struct {
	nonce events.Nonce
	prior
}

// unknownDigest stands for the digest of a request whose change was recovered from the stream of
// events, which doesn't have it. No request has this digest.
func unknownDigest() (zero [sha256.Size]byte) { return zero }

// answers reports whether this request was the one that was committed: it has the same nonce, which
// the caller has compared, and the same data. If the data was lost, it must ask for the same change
// to the same key.
func (p *prior) answers(r *events.Request) bool {
	if p.digest == unknownDigest() {
		return p.event == r.Kind.Event() && p.key == r.NewKey
	}
	return p.digest == r.Digest()
}

// state is what the decision about a batch depends on, in addition to the requests and the clock.
type state struct {
	doubts int // the fence's epoch before anything was read
	mode   mode
	// If the mode is optimistic, these services are remembered, and no key and no nonce was looked
	// for.
	remembered map[events.Target]bool

	services map[events.Target]*service // nil: it was read and does not exist
	masters  map[events.AppID]events.PublicKey
	// takenKeys: keys of the batch that were registered before, for any service or as a Master Key.
	takenKeys map[events.PublicKey]bool
	weak      map[events.PublicKey]bool // new keys that were checked, and whether they are weak
	committed map[requestID]prior       // requests of the batch that were committed before
	told      map[events.Target]*told   // for the services for which [group.asks] was true
	refused   func(requestID) bool      // reports recent refusals by this replica; nil: none
}

// requestID names a request of a service.
type requestID struct {
	target events.Target
	nonce  events.Nonce
}

// pastKey is an earlier key of a service, and the sequence that brought it.
type pastKey struct {
	key      events.PublicKey
	sequence int64
}

func newState() *state {
	return &state{
		remembered: map[events.Target]bool{},
		services:   map[events.Target]*service{},
		masters:    map[events.AppID]events.PublicKey{},
		takenKeys:  map[events.PublicKey]bool{},
		weak:       map[events.PublicKey]bool{},
		committed:  map[requestID]prior{},
		told:       map[events.Target]*told{},
	}
}
