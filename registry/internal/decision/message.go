package decision

import (
	"cmp"
	"strings"

	"omiappreg.org/keyrotation/events"
)

// Message is a message of the registry, ready to be published.
type Message struct {
	Nonce   events.Nonce // its Nats-Msg-Id
	Subject string
	Payload []byte

	// For a message in the outbox: the place of its change, and how many messages the change has.
	Place OutboxPlace
	Parts int
}

// Committed reports whether it announces a change that is in the database.
func (m *Message) Committed() bool { return m.Parts > 0 }

// Messages returns the messages of the outcome. The event comes before the receipt, so that no one
// hears of a change before those who must act on it.
func (o *Outcome) Messages() []Message {
	receipt := Message{Nonce: o.ReceiptNonce, Subject: events.ReceiptSubject + o.In.Request.Target.String(), Payload: o.ReceiptBytes}
	if o.Verdict != Committed {
		return []Message{receipt}
	}
	receipt.Place, receipt.Parts = o.Place, 2
	return []Message{{o.Event.Nonce, o.Event.Subject(), o.EventBytes, o.Place, 2}, receipt}
}

// OutboxPlace is a change's place in the outbox. The changes of one commit lie together, in their
// order.
type OutboxPlace struct {
	Batch    int64 // of the commit
	Position int64
}

// Next returns the next place.
func (p OutboxPlace) Next() OutboxPlace { return OutboxPlace{p.Batch, p.Position + 1} }

func ComparePlaces(a, b OutboxPlace) int {
	return cmp.Or(cmp.Compare(a.Position, b.Position), cmp.Compare(a.Batch, b.Batch))
}

// IsEvent reports whether it is an event, and not a receipt.
func (m *Message) IsEvent() bool { return strings.HasPrefix(m.Subject, events.InvalidationSubject) }
