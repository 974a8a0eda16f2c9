package decision

import (
	"crypto/sha256"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// Service is the part of a service's present state that a decision depends on. The zero value
// is a service that was never bound.
type Service struct {
	ID        int64 // in the database; 0: it is not there yet
	Status    events.ServiceStatus
	Sequence  int64
	Key       events.PublicKey // zero unless active
	ChangedAt int64            // time of the last change, seconds since the Unix epoch
	Recent    []int64          // when JetStream stored the rotations of the last minute
	// Place is that of the last change's request; it never moves back within one stream.
	Place Place
	// SignedAt is the timestamp of the last request by the Master Key that was committed; 0: not
	// known.
	SignedAt int64
}

// Active reports whether the service is bound and not revoked.
func (s *Service) Active() bool { return s.Status == events.Active }

// Equal reports whether two states lead to the same decisions. A new field that a decision depends
// on must be compared here.
func (s *Service) Equal(o *Service) bool {
	return s.ID == o.ID && s.Status == o.Status && s.Sequence == o.Sequence && s.Key == o.Key && s.ChangedAt == o.ChangedAt &&
		s.Place == o.Place && s.SignedAt == o.SignedAt && slices.Equal(s.Recent, o.Recent)
}

// Place is a request's place in the stream of requests. The zero value is unknown.
type Place struct {
	// Stream is when the stream was created, nanoseconds since the Unix epoch; another stream
	// counts from 1 again.
	Stream   int64
	Sequence int64
}

// before reports whether p is known to be an earlier place of the same stream.
func (p Place) before(o Place) bool {
	return p.Stream != 0 && p.Stream == o.Stream && p.Sequence < o.Sequence
}

// after returns the later of two places: of two streams, the one that was created later counts.
func (p Place) after(o Place) Place {
	if o.Stream > p.Stream || o.Stream == p.Stream && o.Sequence > p.Sequence {
		return o
	}
	return p
}

// Details are the rest of what is kept of a service. No decision depends on them.
type Details struct {
	BoundAt                                   int64
	ServiceType, EndpointURL, ProviderReceipt string
}

// NewDetails are the details that a change sets; nil: unchanged.
type NewDetails struct {
	BoundAt                                   *int64
	ServiceType, EndpointURL, ProviderReceipt *string
}

// Mode says what a batch is decided on.
type Mode int

const (
	// Optimistic means on what this replica remembers. A service is in the state in which this
	// replica left it, and no key and no nonce was used before.
	Optimistic Mode = iota
	// Pessimistic means on what the database says. All of it is read before the decision.
	Pessimistic
)

// State is what was remembered or read for the decision about a batch. With the requests, the time
// and the [Issuer], it is all that the outcomes depend on.
type State struct {
	Mode  Mode
	Epoch int // the restore guard's, before anything was read
	// Remembered: if the mode is optimistic, these services are remembered, and no key and no nonce
	// was looked for.
	Remembered map[events.Target]bool

	Services map[events.Target]*Service // nil: it was read and does not exist
	Masters  map[events.AppID]events.PublicKey
	// TakenKeys: keys of the batch that were registered before, for any service or as a Master Key.
	TakenKeys map[events.PublicKey]bool
	Committed map[RequestID]Prior // requests of the batch that were committed before
	// Refusals: of the services for which [Group.NeedsRefusals] was true.
	Refusals map[events.Target]Refusals
	// RefusedRecently reports recent refusals by this replica, whose receipts may not be in the
	// stream yet. nil: there are none.
	RefusedRecently func(RequestID) bool
}

// NewState returns a state in which nothing is known.
func NewState() *State {
	return &State{
		Remembered: map[events.Target]bool{},
		Services:   map[events.Target]*Service{},
		Masters:    map[events.AppID]events.PublicKey{},
		TakenKeys:  map[events.PublicKey]bool{},
		Committed:  map[RequestID]Prior{},
		Refusals:   map[events.Target]Refusals{},
	}
}

// SequenceOf returns a service's sequence; 0: it was never bound.
func (st *State) SequenceOf(t events.Target) int64 {
	if one := st.Services[t]; one != nil {
		return one.Sequence
	}
	return 0
}

// Refusals are the earlier refusals of one service's requests. nil: none.
type Refusals interface {
	// MayHaveRefused reports whether a request with this nonce, signed at this time, was refused,
	// or may have been because the receipts that could tell are gone. Times are seconds since the
	// Unix epoch, skew is seconds.
	MayHaveRefused(nonce events.Nonce, signedAt, skew int64) bool
}

// RequestID names a request of a service.
type RequestID struct {
	Target events.Target
	Nonce  events.Nonce
}

// PastKey is an earlier key of a service, and the sequence that brought it.
type PastKey struct {
	Key      events.PublicKey
	Sequence int64
}

// Prior is a request that was committed before: what it asked for, and its receipt.
type Prior struct {
	Digest       [sha256.Size]byte // of the request
	ReceiptNonce events.Nonce
	Receipt      []byte
	Event        events.EventKind // what it did, and the key that it brought
	Key          events.PublicKey
}

// isFor reports whether this request was the one that was committed: it has the same nonce, which
// the caller has compared, and the same data. If the data was lost, it must ask for the same change
// to the same key.
func (p *Prior) isFor(r *events.Request) bool {
	if p.Digest == UnknownDigest() {
		return p.Event == r.Kind.Event() && p.Key == r.NewKey
	}
	return p.Digest == r.Digest()
}

// UnknownDigest stands for the digest of a request whose change was recovered from the stream of
// events, which doesn't have it. No request has this digest.
func UnknownDigest() (zero [sha256.Size]byte) { return zero }

// committedRequest is a request that is committed in the batch at hand.
type committedRequest struct {
	nonce events.Nonce
	Prior
}

// HistoryLines returns the lines of the first changes. Their ends come from all changes.
func HistoryLines(changes []events.Invalidation, first int) []events.HistoryKey {
	lines := make([]events.HistoryKey, 0, first)
	// The end of the key before the one at hand, and of all keys.
	end, cut := keyring.NoEnd, keyring.NoEnd
	for i := len(changes) - 1; i >= 0; i-- {
		e := &changes[i]
		if i < first && !e.NewKey.IsZero() {
			line := events.HistoryKey{PublicKey: e.NewKey, Event: e.Event, Sequence: e.Sequence, From: e.Timestamp}
			if until := min(end, cut); until != keyring.NoEnd {
				line.Until = &until
			}
			lines = append(lines, line)
		}
		if end = e.GracePeriodExpiry; e.EndsEarlierKeys() {
			cut = min(cut, e.Timestamp)
		}
	}
	slices.Reverse(lines)
	return lines
}
