package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
)

// delivery is a message of the request stream that waits for its turn or is in hand. When it is
// settled, the next one of its lane may go on.
type delivery struct {
	jetstream.Msg
	turns *turns
	lane  *lane
	meta  *jetstream.MsgMetadata
	place uint64    // in the stream
	since time.Time // when the broker last heard that we are at it
	in    *incoming // nil: parsing it panics, which the handler will find out
	paid  bool      // its answer was charged to the budget for garbage

	// follows: others of its service were in their lane when it was sorted; one of them may be the
	// binding.
	follows bool
}

func newDelivery(t *turns, msg jetstream.Msg) (*delivery, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, fmt.Errorf("read a message's place in the stream: %w", err)
	}
	d := &delivery{Msg: msg, turns: t, meta: meta, place: meta.Sequence.Stream, since: time.Now()}
	d.parse(meta)
	return d, nil
}

func (d *delivery) parse(meta *jetstream.MsgMetadata) {
	defer func() { _ = recover() }()
	in := newIncoming(d.Subject(), d.Data(), meta.Timestamp.Unix(), 0)
	d.in = &in
}

// Metadata implements [jetstream.Msg]. The others parse the reply subject on each call.
func (d *delivery) Metadata() (*jetstream.MsgMetadata, error) { return d.meta, nil }

// target returns the service whose lane the message waits in. It is zero for garbage, and if the
// service is not known.
func (d *delivery) target() events.Target {
	if d.in == nil || d.in.request == nil || d.garbage() {
		return events.Target{}
	}
	return d.in.request.Target
}

// stands returns the message's place, and whether it may have been answered: it was delivered
// before, or it was stored before this durable was created, so that another durable may have
// delivered it.
func (d *delivery) stands() (at place, again bool) {
	return place{d.turns.created, int64(d.place)}, d.meta.NumDelivered > 1 || d.meta.Timestamp.Before(d.turns.since)
}

// garbage reports whether no client can have sent the message: it has no nonce by which an answer
// could be told from others.
func (d *delivery) garbage() bool {
	return d.in != nil && d.in.refusal != nil && d.in.request.Nonce.IsZero()
}

// Ack and the others are those of [jetstream.Msg].
func (d *delivery) Ack() error {
	defer d.turns.settled(d)
	return d.Msg.Ack()
}

// DoubleAck is as [delivery.Ack].
func (d *delivery) DoubleAck(ctx context.Context) error {
	defer d.turns.settled(d)
	return d.Msg.DoubleAck(ctx)
}

// Nak is as [delivery.Ack].
func (d *delivery) Nak() error {
	defer d.turns.settled(d)
	return d.Msg.Nak()
}

// NakWithDelay is as [delivery.Ack].
func (d *delivery) NakWithDelay(delay time.Duration) error {
	defer d.turns.settled(d)
	return d.Msg.NakWithDelay(delay)
}

// Term is as [delivery.Ack].
func (d *delivery) Term() error {
	defer d.turns.settled(d)
	return d.Msg.Term()
}

// TermWithReason is as [delivery.Ack].
func (d *delivery) TermWithReason(reason string) error {
	defer d.turns.settled(d)
	return d.Msg.TermWithReason(reason)
}
