package decision

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"omiappreg.org/keyrotation/events"
)

// SignRefusals makes the reasons final, by [Batch.EarlierKeys], and signs the receipts of refusals.
// It is the last step, and runs once.
func (b *Batch) SignRefusals() {
	nonces := NewRefusalNonces(b.issuer.Key)
	b.issuer.Parallel(len(b.Groups), 1, func(i int) {
		g := b.Groups[i]
		for j := range g.Outcomes {
			o := &g.Outcomes[j]
			if g.mayVerify > 0 && o.mayBeSuperseded() {
				g.mayVerify--
				o.checkSuperseded(b.EarlierKeys[g.Target], g.sequencesBack)
			}
			o.signRefusal(b.issuer, b.At.Unix(), nonces)
		}
	})
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

const nonceBytes = 16

// RefusalNonces gives each refused message the nonce of its receipt. No database keeps refusals, so
// a message whose acknowledgement was lost is decided again, by this replica or another, perhaps on
// another state. The nonce is a function of the message, so the message still has one receipt: the
// first that the stream took. Because the nonce depends on a secret, those who know the message
// can't take it before the registry.
type RefusalNonces struct{ secret []byte }

// NewRefusalNonces returns the nonces of the registry with this key.
func NewRefusalNonces(key events.SigningKey) RefusalNonces {
	mac := hmac.New(sha256.New, key.Private().Seed())
	mac.Write([]byte("nonces of the receipts of refusals"))
	return RefusalNonces{mac.Sum(nil)}
}

// Of returns the nonce for a message: for these bytes on this subject, stored at this time.
func (n RefusalNonces) Of(in *Incoming) events.Nonce {
	mac := hmac.New(sha256.New, n.secret)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(in.Stored.UnixNano())))
	mac.Write(append([]byte(in.Request.Target.String()), 0))
	mac.Write(in.Payload)
	nonce, err := events.ParseNonce(base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:nonceBytes]))
	if err != nil {
		panic("decision: base64url is no nonce: " + err.Error()) // both use one alphabet
	}
	return nonce
}

// A signature that the current key did not make may come from an earlier key, and its owner is told
// so. Each key that is tried costs a verification, and strangers can cause them. So there are
// bounds, beyond which the reason stays invalid_signature. The owner of a replaced key asks once.
const (
	// VerificationsASecond is for how many requests of one service earlier keys are tried in a
	// second.
	VerificationsASecond = 32
	// NewestKeys is how many earlier keys are tried for each of these requests.
	NewestKeys = 8
	// MostEarlierKeys is how many are tried as long as FarVerificationsASecond allows it.
	MostEarlierKeys = 256
	// FarVerificationsASecond is how many verifications a second may go beyond the newest keys, for
	// all services together. They cost 0.1 s of a core.
	FarVerificationsASecond = 2048
)

// VerificationBudget counts the verifications by earlier keys in the present second. The zero value
// is ready. Only one goroutine at a time may use it.
type VerificationBudget struct {
	second   int64                 // seconds since the Unix epoch
	requests map[events.Target]int // for which earlier keys are tried
	far      int                   // verifications beyond the newest keys
}

// claim returns how many of n requests may still be compared with earlier keys, and how many
// sequences before the current one to try.
func (v *VerificationBudget) claim(second int64, target events.Target, n int, sequence int64) (requests int, keys int64) {
	if v.requests == nil || v.second != second {
		*v = VerificationBudget{second: second, requests: map[events.Target]int{}}
	}
	n = min(n, VerificationsASecond-v.requests[target])
	v.requests[target] += n
	far := n * int(max(min(sequence-1, MostEarlierKeys)-NewestKeys, 0))
	if v.far+far > FarVerificationsASecond {
		return n, NewestKeys
	}
	v.far += far
	return n, MostEarlierKeys
}

// NeedEarlierKeys returns the services with a refusal whose reason may still become superseded_key,
// and how many sequences back the earlier keys of each are wanted, within the budget. The caller
// puts the keys into [Batch.EarlierKeys].
func (b *Batch) NeedEarlierKeys(budget *VerificationBudget) (targets []events.Target, sequences []int64) {
	for _, g := range b.Groups {
		n := 0
		for i := range g.Outcomes {
			if g.Outcomes[i].mayBeSuperseded() {
				n++
			}
		}
		if n == 0 {
			continue
		}
		if g.mayVerify, g.sequencesBack = budget.claim(b.At.Unix(), g.Target, n, g.Service.Sequence); g.mayVerify > 0 {
			targets, sequences = append(targets, g.Target), append(sequences, g.sequencesBack)
		}
	}
	return targets, sequences
}

// mayBeSuperseded reports whether the reason may still become superseded_key.
func (o *Outcome) mayBeSuperseded() bool {
	return o.Verdict == Refused && o.Reason == events.InvalidSignature && o.In.Request.Kind == events.Rotation
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
