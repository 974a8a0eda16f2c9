package decision

import (
	"cmp"
	"strings"

	"omiappreg.org/keyrotation/events"
)

// Verdict says what became of a request.
type Verdict int

const (
	// Committed means that it passed, and stands if its batch is committed.
	Committed Verdict = iota
	// Refused means that it has no effect, and a receipt with a reason.
	Refused
	// Duplicate means that it was committed before, and gets its first receipt again.
	Duplicate
)

// Outcome is the result of one request, including the bytes that answer it.
type Outcome struct {
	In      Incoming
	Verdict Verdict

	Event      events.Invalidation // when committed
	EventBytes []byte

	Reason events.Reason // when refused
	Detail string        // a sentence for the sender
	// If the signature did not verify: the service's sequence at that point, and the keys that it
	// had earlier in this batch. If one of these keys, or one from before the batch, made the
	// signature, the reason is superseded_key.
	sequence    int64
	earlierKeys []PastKey
	Signer      events.PublicKey // whose signature was checked; zero: none was

	ReceiptNonce events.Nonce
	ReceiptBytes []byte // nil for a refusal until [Batch.SignRefusals]

	Counts  bool        // it counts as a change by the app's Master Key
	Place   OutboxPlace // the commit sets it
	Dropped bool        // the caller sets it for a refusal that is not answered
}

// refuse refuses a request. Its receipt is signed last, when the reason is final.
func (d *decider) refuse(in Incoming, reason events.Reason, detail string) Outcome {
	if in.Request.Kind.ByMasterKey() {
		d.refusedHere = append(d.refusedHere, in.Request.Nonce)
	}
	return Outcome{In: in, Verdict: Refused, Reason: reason, Detail: detail}
}

// passedKeyCheck reports whether the request got so far that its new key was found unused.
func (o *Outcome) passedKeyCheck() bool {
	return o.Verdict == Committed || o.Reason == events.NonceReused || o.Reason == events.RateLimited || o.Reason == events.TooManyServices
}

// authenticated returns the result of checking the signatures, if they were checked with this key.
func (o *Outcome) authenticated(by events.PublicKey) (reason events.Reason, detail string, checked bool) {
	if o == nil || o.Signer != by || by.IsZero() {
		return "", "", false
	}
	switch o.Reason {
	case events.InvalidSignature, events.InvalidProof, events.WeakKey:
		return o.Reason, o.Detail, true
	}
	return "", "", true
}

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

// ComparePlaces orders places by their positions.
func ComparePlaces(a, b OutboxPlace) int {
	return cmp.Or(cmp.Compare(a.Position, b.Position), cmp.Compare(a.Batch, b.Batch))
}

// IsEvent reports whether it is an event, and not a receipt.
func (m *Message) IsEvent() bool { return strings.HasPrefix(m.Subject, events.InvalidationSubject) }
