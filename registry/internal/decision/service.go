package decision

import (
	"slices"

	"omiappreg.org/keyrotation/events"
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
	// SignedAt is the timestamp of the last request by the Master Key that was committed; 0: not known.
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
	// Stream is when the stream was created, nanoseconds since the Unix epoch; another stream counts
	// from 1 again.
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
