package registry

import (
	"omiappreg.org/keyrotation/events"
)

type verdict int

const (
	committed verdict = iota
	rejected
	duplicate
)

// outcome is the result of one request, including the bytes that answer it.
type outcome struct {
	in      incoming
	verdict verdict

	event      events.Invalidation // when committed
	eventBytes []byte

	reason events.Reason // when rejected
	detail string
	// If the signature did not verify: the service's sequence at that point, and the keys that it
	// had earlier in this batch. If one of these keys, or one from before the batch, made the
	// signature, the reason is superseded_key.
	sequence int64
	earlier  []pastKey
	signer   events.PublicKey // whose signature was checked; zero: none was

	receiptNonce events.Nonce
	receiptBytes []byte      // nil for a refusal until [outcome.answer]
	dropped      bool        // a refusal that is not answered
	place        outboxPlace // when committed
	counts       bool        // it counts as a change by the app's Master Key
}

// reject refuses a request. Its receipt is signed last, when the reason is final.
func (d *decider) reject(in incoming, reason events.Reason, detail string) outcome {
	if in.request.Kind.ByMasterKey() {
		d.refused = append(d.refused, in.request.Nonce)
	}
	return outcome{in: in, verdict: rejected, reason: reason, detail: detail}
}

// passedKeyCheck reports whether the request got so far that its new key was found unused.
func (o *outcome) passedKeyCheck() bool {
	return o.verdict == committed || o.reason == events.NonceReused || o.reason == events.RateLimited || o.reason == events.TooManyServices
}

// authenticated returns the result of checking the signatures.
func (o *outcome) authenticated(by events.PublicKey) (reason events.Reason, detail string, checked bool) {
	if o == nil || o.signer != by || by.IsZero() {
		return "", "", false
	}
	switch o.reason {
	case events.InvalidSignature, events.InvalidProof, events.WeakKey:
		return o.reason, o.detail, true
	}
	return "", "", true
}

// mayBeSuperseded reports whether the reason may still become superseded_key.
func (o *outcome) mayBeSuperseded() bool {
	return o.verdict == rejected && o.reason == events.InvalidSignature && o.in.request.Kind == events.Rotation
}

// A signature that the current key did not make may come from an earlier key, and its owner is told
// so. Each key that is tried costs a verification, and strangers can cause them. So there are
// bounds, beyond which the reason stays invalid_signature. The owner of a replaced key asks once.
const (
	newestKeys   = 8  // are tried for each of looksASecond requests of a service,
	looksASecond = 32 // each second
	earlierKeys  = 256
	// farLooksASecond is how many verifications a second may go beyond the newest keys, up to
	// earlierKeys, for all services together. They cost 0.1 s of a core.
	farLooksASecond = 2048
)

// looks counts verifications in the present second.
type looks struct {
	second int64
	taken  map[events.Target]int
	far    int
}

// take returns how many of n requests may still be compared with earlier keys, and how many
// sequences before the current one to try.
func (l *looks) take(second int64, target events.Target, n int, sequence int64) (requests int, keys int64) {
	if l.taken == nil || l.second != second {
		*l = looks{second: second, taken: map[events.Target]int{}}
	}
	n = min(n, looksASecond-l.taken[target])
	l.taken[target] += n
	far := n * int(max(min(sequence-1, earlierKeys)-newestKeys, 0))
	if l.far+far > farLooksASecond {
		return n, newestKeys
	}
	l.far += far
	return n, earlierKeys
}

// checkSuperseded looks for the signer among the service's earlier keys, back to this many
// sequences.
func (o *outcome) checkSuperseded(previous []pastKey, sequences int64) {
	r := o.in.request
	for _, keys := range [...][]pastKey{o.earlier, previous} {
		for _, past := range keys {
			if past.sequence >= o.sequence-sequences && past.key.Verify(r.Signed, r.Signature) {
				o.reason = events.SupersededKey
				o.detail = "The signature was made by an earlier key of the service; only the current one authorises a change."
				return
			}
		}
	}
}

// answer signs the receipt of a refusal.
func (o *outcome) answer(origin string, now int64, key events.SigningKey, nonces refusalNonces) {
	if o.verdict != rejected || o.dropped {
		return
	}
	receipt := events.Receipt{
		Origin: origin, Target: o.in.request.Target, Event: events.RequestRejected,
		RequestNonce: o.in.request.Nonce, Timestamp: now, Nonce: nonces.of(&o.in),
		Reason: o.reason, Detail: o.detail, RequestHash: events.RequestHash(o.in.payload),
	}
	o.receiptNonce, o.receiptBytes = receipt.Nonce, receipt.Sign(key)
}

// signed is a message of the registry, ready to be published.
type signed struct {
	nonce   events.Nonce // its Nats-Msg-Id
	subject string
	payload []byte

	// For a message in the outbox: the place of its change, and how many messages the change has.
	place outboxPlace
	parts int
}

// committed reports whether it announces a change that is in the database.
func (m *signed) committed() bool { return m.parts > 0 }

// messages returns the messages of the outcome. The event comes before the receipt, so that no one
// hears of a change before those who must act on it.
func (o *outcome) messages() []signed {
	receipt := signed{nonce: o.receiptNonce, subject: events.ReceiptSubject + o.in.request.Target.String(), payload: o.receiptBytes}
	if o.verdict != committed {
		return []signed{receipt}
	}
	receipt.place, receipt.parts = o.place, 2
	return []signed{{o.event.Nonce, o.event.Subject(), o.eventBytes, o.place, 2}, receipt}
}
