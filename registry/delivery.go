package registry

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// requestMessage is a request on its way from the fair queue to the decision.
type requestMessage = consume.Message[queued]

// queued is what is known of a request before it is handled.
type queued struct {
	in    *decision.Incoming // nil: it is not parsed yet, or parsing it panics, which the handler will find out
	at    decision.Place     // in its stream
	again bool               // it may have been answered
	paid  bool               // its answer needs nothing of the budget for garbage any more
}

// delivery is a message of the request stream that waits for its turn or is in hand. When it is
// settled, the next one of its lane may go on.
type delivery struct {
	message requestMessage
	broker  consume.Acknowledger
	request decision.Incoming

	turns *turns
	lane  *lane
	since time.Time // when the broker last heard that we are at it

	// follows: others of its service were in their lane when it was sorted; one of them may be the
	// binding.
	follows bool
}

func newDelivery(t *turns, msg jetstream.Msg) (*delivery, error) {
	m, err := consume.NewMessage[queued](msg)
	if err != nil {
		return nil, err
	}
	d := &delivery{message: m, broker: msg, turns: t, since: time.Now()}
	d.message.Acknowledger = d
	d.message.Payload.at = decision.Place{Stream: t.created, Sequence: int64(m.Sequence)}
	// It may have been answered if it was stored before this durable was created, because another
	// durable may have delivered it.
	d.message.Payload.again = m.Delivered > 1 || m.Stored.Before(t.since)
	d.parse()
	return d, nil
}

func (d *delivery) parse() {
	defer func() { _ = recover() }()
	d.request = decision.NewIncoming(d.message.Subject, d.message.Data, d.message.Stored.Unix(), 0)
	d.message.Payload.in = &d.request
}

// parsed returns the request; nil: parsing it panics.
func (d *delivery) parsed() *decision.Incoming { return d.message.Payload.in }

// target returns the service whose lane the message waits in. It is zero for garbage, and if the
// service is not known.
func (d *delivery) target() events.Target {
	if in := d.parsed(); in == nil || in.Request == nil || d.garbage() {
		return events.Target{}
	}
	return d.request.Request.Target
}

// garbage reports whether no client can have sent the message: it has no nonce by which an answer
// could be told from others.
func (d *delivery) garbage() bool {
	in := d.parsed()
	return in != nil && in.Refusal != nil && in.Request.Nonce.IsZero()
}

// Ack implements [consume.Acknowledger].
func (d *delivery) Ack() error {
	defer d.turns.settled(d)
	return d.broker.Ack()
}

// NakWithDelay implements [consume.Acknowledger].
func (d *delivery) NakWithDelay(delay time.Duration) error {
	defer d.turns.settled(d)
	return d.broker.NakWithDelay(delay)
}

// TermWithReason implements [consume.Acknowledger].
func (d *delivery) TermWithReason(reason string) error {
	defer d.turns.settled(d)
	return d.broker.TermWithReason(reason)
}

// InProgress implements [consume.Acknowledger].
func (d *delivery) InProgress() error { return d.broker.InProgress() }
