package registry

import (
	"fmt"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
)

// rateWindow is the minute of the rate limit, in seconds.
const rateWindow = 60

// incoming is one request as it came out of the stream.
type incoming struct {
	request  *events.Request
	refusal  *events.Refusal // of the first check, if it failed
	payload  []byte
	storedAt int64 // when JetStream stored it, seconds since the Unix epoch
	// stored: the same time, as precisely as the stream has it: it tells messages with the same
	// bytes apart.
	stored time.Time
	index  int   // its place in the batch
	place  place // in the stream; zero: not known
	again  bool  // it was delivered before, so it may have been answered

	// outproved: another service's request proves that it has this new key, and this request
	// doesn't.
	outproved bool
}

// decider decides the requests of one service, in their order. It holds the service's state and
// changes it, so that each request sees the changes of those before it.
type decider struct {
	policy Policy
	key    events.SigningKey
	now    int64 // seconds since the Unix epoch

	target    events.Target
	service   service
	details   newDetails
	master    events.PublicKey // zero: the app is unknown
	committed func(events.Nonce) (prior, bool)
	weak      map[events.PublicKey]bool // new keys that were checked, and whether they are weak
	// taken reports whether a key was registered before this place in the batch.
	taken func(key events.PublicKey, index int) bool

	claimed []events.PublicKey // keys that this batch registers for this service
	before  []pastKey          // keys that were current earlier in this batch
	// answered: requests of this batch that were committed; a list, because they are few.
	answered []answered
	refused  []events.Nonce          // requests by the Master Key in this batch that were refused
	recently func(events.Nonce) bool // reports the same of earlier batches
	// told: what the stream of receipts has of the service; nil: it was not read.
	told    *told
	looked  bool
	asks    bool // the stream of receipts should be read
	limited map[int]limited
}

// decide runs the checks of docs/protocol.md §6 in their order, and returns the outcome of the
// request. before is the outcome on another state, if there was one: a signature that was checked
// with the same key is not checked again.
func (d *decider) decide(in incoming, before *outcome) outcome {
	r := in.request
	if in.refusal != nil {
		return d.reject(in, in.refusal.Reason, in.refusal.Detail)
	}
	if r.NamesItsTarget() && r.IsFor(d.policy.Origin) {
		if first, ok := d.answer(r.Nonce); ok && first.answers(r) {
			// A request that is sent again can't fail checks that it passed before, even if the
			// policy has changed.
			return outcome{in: in, verdict: duplicate, receiptNonce: first.receiptNonce, receiptBytes: first.receipt}
		}
	}
	if reason, detail := d.admit(in); reason != "" {
		return d.reject(in, reason, detail)
	}
	signer, whose := d.signer(r)
	o := d.signed(in, signer, whose, before)
	o.signer = signer
	return o
}

// signed decides a request that only its signatures, its key or its nonce may still stop.
func (d *decider) signed(in incoming, signer events.PublicKey, whose string, before *outcome) outcome {
	reason, detail, checked := before.authenticated(signer)
	if !checked {
		reason, detail = d.authenticate(in.request, signer, whose)
	}
	if reason != "" {
		o := d.reject(in, reason, detail)
		o.sequence, o.earlier = d.service.sequence, slices.Clip(d.before)
		return o
	}
	if in.request.Kind != events.Revocation && d.weak[in.request.NewKey] {
		return d.reject(in, events.WeakKey, "The new key is not the canonical encoding of a curve point of the large prime order; generate another one.")
	}
	if reason, detail := d.register(in); reason != "" {
		return d.reject(in, reason, detail)
	}
	return d.commit(in)
}

// answer finds a request with this nonce that was committed before, or earlier in this batch.
func (d *decider) answer(nonce events.Nonce) (prior, bool) {
	for i := range d.answered {
		if d.answered[i].nonce == nonce {
			return d.answered[i].prior, true
		}
	}
	return d.committed(nonce)
}

// admit runs the checks that need no cryptography: the form that the policy asks for, target,
// freshness, and the service's state.
func (d *decider) admit(in incoming) (events.Reason, string) {
	r := in.request
	age, skew := in.storedAt-r.Timestamp, d.policy.skewSeconds()
	switch {
	case r.HasGracePeriod && r.GracePeriod > d.policy.graceSeconds():
		return events.InvalidField, `The member "grace_period" is longer than this registry's own.`
	case !r.NamesItsTarget():
		return events.TargetMismatch, "The app or service inside the message is not the one in its subject."
	case !r.IsFor(d.policy.Origin):
		return events.TargetMismatch, `The request is for another registry: its "origin" is not this one's, ` + d.policy.Origin + "."
	case age > skew:
		return events.TimestampOutOfWindow, fmt.Sprintf("By its timestamp the request was signed %d s before it was stored, and at most %d s "+
			"are allowed: the signer's clock is probably behind, or the request waited. Set the clock if it is wrong, and sign a new one.", age, skew)
	case -age > skew:
		return events.TimestampOutOfWindow, fmt.Sprintf("By its timestamp the request was signed %d s after it was stored, and at most %d s "+
			"are allowed: the signer's clock is probably ahead. Set it, check that the timestamp counts seconds, and sign a new one.", -age, skew)
	case r.Kind.ByMasterKey() && d.master.IsZero():
		return events.UnknownApp, "This registry does not know the app; its operator adds it with its Master Key."
	case r.Kind == events.Binding && d.service.active():
		return events.AlreadyBound, "The service is bound already; to replace a lost key, send a master_reset."
	case r.Kind != events.Binding && !d.service.active():
		return events.UnknownService, "The service is not bound; its developer binds it first."
	case r.Kind.ByMasterKey():
		return d.inOrder(in)
	}
	return "", ""
}

// inOrder checks that a request by the Master Key comes after everything that was committed before
// it, in the order of the stream and in the order of timestamps. Otherwise a late copy of a refused
// request could be accepted, or the older of two keys could win.
func (d *decider) inOrder(in incoming) (events.Reason, string) {
	const sameSecond = "It was signed in the same second as the last request by the Master Key that was committed for this service, "
	r, s := in.request, &d.service
	switch earlier := s.signedAt - r.Timestamp; {
	// If a request was stored this long after the last change, its place says nothing: the stream
	// has lost its last messages and gives their places again.
	case in.place.before(s.place) && in.storedAt <= s.changedAt+d.policy.skewSeconds():
		return events.OutOfOrder, "It was stored before a request that has changed the service since; " +
			"requests by the Master Key take effect in the order in which they were stored. If it is still wanted, sign a new one."
	case s.signedAt == 0:
	case earlier > 0:
		return events.TimestampOutOfOrder, fmt.Sprintf("By its timestamp it was signed %d s before the last request by the Master Key "+
			"that was committed for this service. If it is still wanted, sign a new one; if it is new, one signer's clock is wrong.", earlier)
	case earlier == 0 && d.refusedBefore(r):
		return events.TimestampOutOfOrder, sameSecond + "and it was refused before, or that can't be told any more. If it is still wanted, sign a new one."
	}
	return "", ""
}

// refusedBefore reports whether a request was refused, or may have been. The database doesn't know
// that: the stream of receipts does.
func (d *decider) refusedBefore(r *events.Request) bool {
	if slices.Contains(d.refused, r.Nonce) || d.recently(r.Nonce) {
		return true
	}
	d.asks = d.asks || !d.looked
	return d.told.mayHaveRefused(r.Nonce, r.Timestamp, d.policy.skewSeconds())
}

// signer returns whose signature a request needs.
func (d *decider) signer(r *events.Request) (key events.PublicKey, whose string) {
	if r.Kind == events.Rotation {
		return d.service.key, "the service's current key"
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
	case r.Proof.IsZero() && d.policy.RequireProof.Need(r.Kind):
		return events.InvalidProof, `This registry requires "new_key_signature", the new key's signature over the same bytes.`
	case !r.Proof.IsZero() && !r.NewKey.Verify(r.Signed, r.Proof):
		return events.InvalidProof, `The "new_key_signature" was not made by the new key over the same bytes as "signature".`
	}
	return "", ""
}

// register checks what may happen only once: it refuses a used key, a used nonce, and a rotation
// that comes too soon.
func (d *decider) register(in incoming) (events.Reason, string) {
	r := in.request
	_, used := d.answer(r.Nonce)
	switch {
	case r.Kind != events.Revocation && (d.taken(r.NewKey, in.index) || slices.Contains(d.claimed, r.NewKey)):
		return events.KeyInUse, "The new key was registered before, and one key names one service for ever; generate another one."
	case in.outproved:
		return events.KeyInUse, `Another service has asked for this key with the key's own signature ("new_key_signature"), and this ` +
			"request came without one. Generate another key."
	case used:
		return events.NonceReused, "The service used this nonce for another request; make a new one."
	}
	if wait := d.policy.rotatesFrom(d.service.recent) - in.storedAt; r.Kind == events.Rotation && wait > 0 {
		return events.RateLimited, fmt.Sprintf("The service may rotate %d times a minute and has done so; try again in %d s.",
			d.policy.RotationsPerMinute, wait)
	}
	why := d.limited[in.index]
	return why.reason, why.detail
}

// rotatesFrom returns the second from which a service with these rotations may rotate again: a
// request that JetStream stores then is within the limit. 0 means that no limit delays it.
func (p Policy) rotatesFrom(recent []int64) int64 {
	if p.RotationsPerMinute <= 0 || len(recent) < p.RotationsPerMinute {
		return 0
	}
	times := slices.Sorted(slices.Values(recent))
	return times[len(times)-p.RotationsPerMinute] + rateWindow
}

// commit moves the service, and makes the event and the receipt that announce it.
func (d *decider) commit(in incoming) outcome {
	r := in.request
	event := events.Invalidation{
		Origin: d.policy.Origin, Target: d.target, Event: r.Kind.Event(),
		OldKey: d.service.key, NewKey: r.NewKey,
		// This replica's clock may be behind the clock that made the last change. Time never runs
		// backwards within one service.
		Timestamp: max(d.now, d.service.changedAt),
		Nonce:     events.NewNonce(), Sequence: d.service.sequence + 1, EndEarlier: r.EndEarlier,
	}
	event.GracePeriodExpiry = event.Timestamp
	if r.Kind == events.Rotation {
		event.GracePeriodExpiry += d.grace(r)
	}
	receipt := events.Receipt{
		Origin: d.policy.Origin, Target: d.target, Event: events.RequestCommitted,
		RequestNonce: r.Nonce, Timestamp: event.Timestamp, Nonce: events.NewNonce(),
		Sequence: event.Sequence, PublicKey: r.NewKey, GracePeriodExpiry: event.GracePeriodExpiry, EventNonce: event.Nonce,
	}
	o := outcome{
		in: in, verdict: committed, event: event, eventBytes: event.Sign(d.key),
		receiptNonce: receipt.Nonce, receiptBytes: receipt.Sign(d.key),
	}
	d.move(in, &o)
	return o
}

func (d *decider) grace(r *events.Request) int64 {
	if r.HasGracePeriod {
		return r.GracePeriod
	}
	return d.policy.graceSeconds()
}

// move changes the service as the event says.
func (d *decider) move(in incoming, o *outcome) {
	r, s := in.request, &d.service
	d.answered = append(d.answered, answered{r.Nonce, prior{r.Digest(), o.receiptNonce, o.receiptBytes, o.event.Event, r.NewKey}})
	if !s.key.IsZero() {
		d.before = append(d.before, pastKey{s.key, s.sequence})
	}
	s.status, s.sequence, s.key, s.changedAt = events.Active, o.event.Sequence, r.NewKey, o.event.Timestamp
	s.place = s.place.after(in.place)
	if r.Kind.ByMasterKey() {
		s.signedAt = r.Timestamp
	}
	switch r.Kind {
	case events.Rotation:
		s.recent = d.policy.counted(s.recent, in.storedAt)
	case events.Revocation:
		s.status, d.details.providerReceipt = events.Revoked, new(string(r.ProviderReceipt))
		return
	case events.Binding:
		d.details = newDetails{new(o.event.Timestamp), &r.ServiceType, &r.EndpointURL, new("")}
	case events.Reset:
		if r.ServiceType != "" {
			d.details.serviceType = &r.ServiceType
		}
		if r.EndpointURL != "" {
			d.details.endpointURL = &r.EndpointURL
		}
	}
	d.claimed = append(d.claimed, r.NewKey)
}

// counted returns the times of a minute's rotations with one more. Without a limit, nothing is
// counted.
func (p Policy) counted(times []int64, at int64) []int64 {
	if p.RotationsPerMinute < 0 {
		return nil
	}
	return withRecent(times, at)
}

func withRecent(times []int64, at int64) []int64 {
	recent := make([]int64, 0, len(times)+1)
	for _, t := range times {
		if t > at-rateWindow {
			recent = append(recent, t)
		}
	}
	return append(recent, at)
}
