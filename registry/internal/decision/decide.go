package decision

import (
	"fmt"
	"slices"

	"omiappreg.org/keyrotation/events"
)

// decider decides the requests of one service, in their order. It holds the service's state and
// changes it, so that each request sees the changes of those before it.
type decider struct {
	Issuer
	now int64 // seconds since the Unix epoch

	target    events.Target
	service   Service
	details   NewDetails
	master    events.PublicKey // zero: the app is unknown
	committed func(events.Nonce) (Prior, bool)
	weak      map[events.PublicKey]bool // new keys that were checked, and whether they are weak
	// taken reports whether a key was registered before this place in the batch.
	taken func(key events.PublicKey, index int) bool

	claimed     []events.PublicKey // keys that this batch registers for this service
	earlierKeys []PastKey          // keys that were current earlier in this batch
	// committedHere: requests of this batch that were committed; a list, because they are few.
	committedHere   []committedRequest
	refusedHere     []events.Nonce          // by the Master Key, in this batch
	refusedRecently func(events.Nonce) bool // reports the same of earlier batches
	// refusals: what the stream of receipts has of the service; nil: it was not read.
	refusals      Refusals
	refusalsRead  bool
	needsRefusals bool // the stream of receipts should be read
	beyondLimit   map[int]overLimit
}

// decide runs the checks of docs/protocol.md §6 in their order, and returns the outcome of the
// request. before is the outcome on another state, if there was one: a signature that was checked
// with the same key is not checked again.
func (d *decider) decide(in Incoming, before *Outcome) Outcome {
	r := in.Request
	if in.Refusal != nil {
		return d.refuse(in, in.Refusal.Reason, in.Refusal.Detail)
	}
	if r.NamesItsTarget() && r.IsFor(d.Rules.Origin) {
		if first, ok := d.prior(r.Nonce); ok && first.isFor(r) {
			// A request that is sent again can't fail checks that it passed before, even if the
			// policy has changed.
			return Outcome{In: in, Verdict: Duplicate, ReceiptNonce: first.ReceiptNonce, ReceiptBytes: first.Receipt}
		}
	}
	if reason, detail := d.admit(in); reason != "" {
		return d.refuse(in, reason, detail)
	}
	signer, whose := d.signer(r)
	o := d.checkSigned(in, signer, whose, before)
	o.Signer = signer
	return o
}

// checkSigned decides a request that only its signatures, its key or its nonce may still stop.
func (d *decider) checkSigned(in Incoming, signer events.PublicKey, whose string, before *Outcome) Outcome {
	reason, detail, checked := before.authenticated(signer)
	if !checked {
		reason, detail = d.authenticate(in.Request, signer, whose)
	}
	if reason != "" {
		o := d.refuse(in, reason, detail)
		o.sequence, o.earlierKeys = d.service.Sequence, slices.Clip(d.earlierKeys)
		return o
	}
	if in.bringsKey() && d.weak[in.Request.NewKey] {
		return d.refuse(in, events.WeakKey, "The new key is not the canonical encoding of a curve point of the large prime order; generate another one.")
	}
	if reason, detail := d.register(in); reason != "" {
		return d.refuse(in, reason, detail)
	}
	return d.commit(in)
}

// prior finds a request with this nonce that was committed before, or earlier in this batch.
func (d *decider) prior(nonce events.Nonce) (Prior, bool) {
	for i := range d.committedHere {
		if d.committedHere[i].nonce == nonce {
			return d.committedHere[i].Prior, true
		}
	}
	return d.committed(nonce)
}

// admit runs the checks that need no cryptography: the form that the policy asks for, target,
// freshness, and the service's state.
func (d *decider) admit(in Incoming) (events.Reason, string) {
	r := in.Request
	age, skew := in.StoredAt-r.Timestamp, d.Rules.Skew
	switch {
	case r.HasGracePeriod && r.GracePeriod > d.Rules.Grace:
		return events.InvalidField, `The member "grace_period" is longer than this registry's own.`
	case !r.NamesItsTarget():
		return events.TargetMismatch, "The app or service inside the message is not the one in its subject."
	case !r.IsFor(d.Rules.Origin):
		return events.TargetMismatch, `The request is for another registry: its "origin" is not this one's, ` + d.Rules.Origin + "."
	case age > skew:
		return events.TimestampOutOfWindow, fmt.Sprintf("By its timestamp the request was signed %d s before it was stored, and at most %d s "+
			"are allowed: the signer's clock is probably behind, or the request waited. Set the clock if it is wrong, and sign a new one.", age, skew)
	case -age > skew:
		return events.TimestampOutOfWindow, fmt.Sprintf("By its timestamp the request was signed %d s after it was stored, and at most %d s "+
			"are allowed: the signer's clock is probably ahead. Set it, check that the timestamp counts seconds, and sign a new one.", -age, skew)
	case r.Kind.ByMasterKey() && d.master.IsZero():
		return events.UnknownApp, "This registry does not know the app; its operator adds it with its Master Key."
	case r.Kind == events.Binding && d.service.Active():
		return events.AlreadyBound, "The service is bound already; to replace a lost key, send a master_reset."
	case r.Kind != events.Binding && !d.service.Active():
		return events.UnknownService, "The service is not bound; its developer binds it first."
	case r.Kind.ByMasterKey():
		return d.inOrder(in)
	}
	return "", ""
}

// inOrder checks that a request by the Master Key comes after everything that was committed before
// it, in the order of the stream and in the order of timestamps. Otherwise a late copy of a refused
// request could be accepted, or the older of two keys could win.
func (d *decider) inOrder(in Incoming) (events.Reason, string) {
	const sameSecond = "It was signed in the same second as the last request by the Master Key that was committed for this service, "
	r, s := in.Request, &d.service
	switch earlier := s.SignedAt - r.Timestamp; {
	// If a request was stored this long after the last change, its place says nothing: the stream
	// has lost its last messages and gives their places again.
	case in.Place.before(s.Place) && in.StoredAt <= s.ChangedAt+d.Rules.Skew:
		return events.OutOfOrder, "It was stored before a request that has changed the service since; " +
			"requests by the Master Key take effect in the order in which they were stored. If it is still wanted, sign a new one."
	case s.SignedAt == 0:
	case earlier > 0:
		return events.TimestampOutOfOrder, fmt.Sprintf("By its timestamp it was signed %d s before the last request by the Master Key "+
			"that was committed for this service. If it is still wanted, sign a new one; if it is new, one signer's clock is wrong.", earlier)
	case earlier == 0 && d.mayHaveRefused(r):
		return events.TimestampOutOfOrder, sameSecond + "and it was refused before, or that can't be told any more. If it is still wanted, sign a new one."
	}
	return "", ""
}

// mayHaveRefused reports whether a request was refused, or may have been. The database doesn't know
// that: the stream of receipts does.
func (d *decider) mayHaveRefused(r *events.Request) bool {
	if slices.Contains(d.refusedHere, r.Nonce) || d.refusedRecently(r.Nonce) {
		return true
	}
	d.needsRefusals = d.needsRefusals || !d.refusalsRead
	return d.refusals != nil && d.refusals.MayHaveRefused(r.Nonce, r.Timestamp, d.Rules.Skew)
}

// signer returns whose signature a request needs.
func (d *decider) signer(r *events.Request) (key events.PublicKey, whose string) {
	if r.Kind == events.Rotation {
		return d.service.Key, "the service's current key"
	}
	return d.master, "the developer's Master Key"
}

// authenticate checks the signatures.
func (d *decider) authenticate(r *events.Request, signer events.PublicKey, whose string) (events.Reason, string) {
	switch {
	case !signer.Verify(r.Signed, r.Signature):
		return events.InvalidSignature, "The signature was not made by " + whose + " over the canonical form of the data."
	case r.Kind == events.Revocation:
		return "", ""
	case r.Proof.IsZero() && d.Rules.RequireProof.Need(r.Kind):
		return events.InvalidProof, `This registry requires "new_key_signature", the new key's signature over the same bytes.`
	case !r.Proof.IsZero() && !r.NewKey.Verify(r.Signed, r.Proof):
		return events.InvalidProof, `The "new_key_signature" was not made by the new key over the same bytes as "signature".`
	}
	return "", ""
}

// register checks what may happen only once: it refuses a used key, a used nonce, and a rotation
// that comes too soon.
func (d *decider) register(in Incoming) (events.Reason, string) {
	r := in.Request
	_, used := d.prior(r.Nonce)
	switch {
	case in.bringsKey() && (d.taken(r.NewKey, in.Index) || slices.Contains(d.claimed, r.NewKey)):
		return events.KeyInUse, "The new key was registered before, and one key names one service for ever; generate another one."
	case in.Outproved:
		return events.KeyInUse, `Another service has asked for this key with the key's own signature ("new_key_signature"), and this ` +
			"request came without one. Generate another key."
	case used:
		return events.NonceReused, "The service used this nonce for another request; make a new one."
	}
	if wait := d.Rules.RotatesFrom(d.service.Recent) - in.StoredAt; r.Kind == events.Rotation && wait > 0 {
		return events.RateLimited, fmt.Sprintf("The service may rotate %d times a minute and has done so; try again in %d s.",
			d.Rules.RotationsPerMinute, wait)
	}
	why := d.beyondLimit[in.Index]
	return why.reason, why.detail
}
