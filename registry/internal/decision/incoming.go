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
