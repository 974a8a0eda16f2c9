package decision

import (
	"omiappreg.org/keyrotation/events"
)

type Verdict int

const (
	Committed Verdict = iota
	Refused
	Duplicate
)

// Outcome is the result of one request, including the bytes that answer it.
type Outcome struct {
	In      Incoming
	Verdict Verdict

	Event      events.Invalidation // when committed
	EventBytes []byte

	Reason events.Reason // when refused
	Detail string
	// If the signature did not verify: the service's sequence at that point, and the keys that it
	// had earlier in this batch. If one of these keys, or one from before the batch, made the
	// signature, the reason is superseded_key.
	sequence    int64
	earlierKeys []PastKey
	Signer      events.PublicKey // whose signature was checked; zero: none was

	ReceiptNonce events.Nonce
	ReceiptBytes []byte      // nil for a refusal until [Outcome.signRefusal]
	Dropped      bool        // a refusal that is not answered
	Place        OutboxPlace // when committed
	Counts       bool        // it counts as a change by the app's Master Key
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

// authenticated returns the result of checking the signatures.
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

// mayBeSuperseded reports whether the reason may still become superseded_key.
func (o *Outcome) mayBeSuperseded() bool {
	return o.Verdict == Refused && o.Reason == events.InvalidSignature && o.In.Request.Kind == events.Rotation
}

// A signature that the current key did not make may come from an earlier key, and its owner is told
// so. Each key that is tried costs a verification, and strangers can cause them. So there are
// bounds, beyond which the reason stays invalid_signature. The owner of a replaced key asks once.
const (
	NewestKeys           = 8  // are tried for each of looksASecond requests of a service,
	VerificationsASecond = 32 // each second
	MostEarlierKeys      = 256
	// FarVerificationsASecond is how many verifications a second may go beyond the newest keys, up to
	// earlierKeys, for all services together. They cost 0.1 s of a core.
	FarVerificationsASecond = 2048
)

// VerificationBudget counts verifications in the present second.
type VerificationBudget struct {
	second   int64
	requests map[events.Target]int
	far      int
}

// claim returns how many of n requests may still be compared with earlier keys, and how many
// sequences before the current one to try.
func (l *VerificationBudget) claim(second int64, target events.Target, n int, sequence int64) (requests int, keys int64) {
	if l.requests == nil || l.second != second {
		*l = VerificationBudget{second: second, requests: map[events.Target]int{}}
	}
	n = min(n, VerificationsASecond-l.requests[target])
	l.requests[target] += n
	far := n * int(max(min(sequence-1, MostEarlierKeys)-NewestKeys, 0))
	if l.far+far > FarVerificationsASecond {
		return n, NewestKeys
	}
	l.far += far
	return n, MostEarlierKeys
}

// checkSuperseded looks for the signer among the service's earlier keys, back to this many
// sequences.
func (o *Outcome) checkSuperseded(previous []PastKey, sequences int64) {
	r := o.In.Request
	for _, keys := range [...][]PastKey{o.earlierKeys, previous} {
		for _, past := range keys {
			if past.Sequence >= o.sequence-sequences && past.Key.Verify(r.Signed, r.Signature) {
				o.Reason = events.SupersededKey
				o.Detail = "The signature was made by an earlier key of the service; only the current one authorises a change."
				return
			}
		}
	}
}

// signRefusal signs the receipt of a refusal.
func (o *Outcome) signRefusal(issuer Issuer, now int64, nonces RefusalNonces) {
	if o.Verdict != Refused || o.Dropped {
		return
	}
	receipt := events.Receipt{
		Origin: issuer.Rules.Origin, Target: o.In.Request.Target, Event: events.RequestRejected,
		RequestNonce: o.In.Request.Nonce, Timestamp: now, Nonce: nonces.Of(&o.In),
		Reason: o.Reason, Detail: o.Detail, RequestHash: events.RequestHash(o.In.Payload),
	}
	o.ReceiptNonce, o.ReceiptBytes = receipt.Nonce, receipt.Sign(issuer.Key)
}
