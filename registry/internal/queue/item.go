package queue

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// Message is a request on its way from the fair queue to the decision.
type Message = consume.Message[Request]

// Request is what is known of a request before it is handled.
type Request struct {
	// Parsed is the request. It is nil if it is not parsed yet, or if parsing it panics, which the
	// handler will find out.
	Parsed      *decision.Incoming
	Place       decision.Place // in its stream
	Redelivered bool           // it may have been answered
	Paid        bool           // its answer needs nothing of the budget for garbage any more
}

// item is a message of the request stream that waits for its turn or is in hand. When it is
// finished, the next one of its queue may go on.
type item struct {
	message Message
	broker  consume.Acknowledger
	request decision.Incoming

	source *source
	queue  *serviceQueue
	since  time.Time // when the broker last heard that we are at it

	// follows: others of its service were in their queue when it was sorted; one of them may be the
	// binding.
	follows bool
}

func newItem(s *source, msg jetstream.Msg) (*item, error) {
	m, err := consume.NewMessage[Request](msg)
	if err != nil {
		return nil, err
	}
	it := &item{message: m, broker: msg, source: s, since: time.Now()}
	it.message.Acknowledger = it
	it.message.Payload.Place = decision.Place{Stream: s.created, Sequence: int64(m.Sequence)}
	// It may have been answered if it was stored before this durable was created, because another
	// durable may have delivered it.
	it.message.Payload.Redelivered = m.Delivered > 1 || m.Stored.Before(s.since)
	it.parse()
	return it, nil
}

func (it *item) parse() {
	defer func() { _ = recover() }()
	it.request = decision.NewIncoming(it.message.Subject, it.message.Data, it.message.Stored.Unix(), 0)
	it.message.Payload.Parsed = &it.request
}

// parsed returns the request; nil: parsing it panics.
func (it *item) parsed() *decision.Incoming { return it.message.Payload.Parsed }

// target returns the service whose queue the message waits in. It is zero for garbage, and if the
// service is not known.
func (it *item) target() events.Target {
	if in := it.parsed(); in == nil || in.Request == nil || it.garbage() {
		return events.Target{}
	}
	return it.request.Request.Target
}

// garbage reports whether no client can have sent the message: it has no nonce by which an answer
// could be told from others.
func (it *item) garbage() bool {
	in := it.parsed()
	return in != nil && in.Refusal != nil && in.Request.Nonce.IsZero()
}

// Ack implements [consume.Acknowledger].
func (it *item) Ack() error {
	defer it.source.finish(it)
	return it.broker.Ack()
}

// NakWithDelay implements [consume.Acknowledger].
func (it *item) NakWithDelay(delay time.Duration) error {
	defer it.source.finish(it)
	return it.broker.NakWithDelay(delay)
}

// TermWithReason implements [consume.Acknowledger].
func (it *item) TermWithReason(reason string) error {
	defer it.source.finish(it)
	return it.broker.TermWithReason(reason)
}

// InProgress implements [consume.Acknowledger].
func (it *item) InProgress() error { return it.broker.InProgress() }
