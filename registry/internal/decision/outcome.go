package decision

import (
	"omiappreg.org/keyrotation/events"
)

// Verdict says what became of a request.
type Verdict int

const (
	// Committed: it passed, and stands if its batch is committed.
	Committed Verdict = iota
	// Refused: it has no effect, and a receipt with a reason.
	Refused
	// Duplicate: it was committed before, and gets its first receipt again.
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
