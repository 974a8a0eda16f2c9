package registry

import (
	"cmp"
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
	storedAt int64     // when JetStream stored it, seconds since the Unix epoch
	stored   time.Time // the same, as precisely as the stream knows it: it tells messages of the same bytes apart
	index    int       // its place in the batch
}

// decider decides the requests of one service, in their order. It holds the service's state and moves it, so that
// each request sees what the one before it changed.
type decider struct {
	policy Policy
	key    events.SigningKey
	now    int64 // seconds since the Unix epoch

	target    events.Target
	service   service
	master    events.PublicKey // zero: the app is not known
	committed func(events.Nonce) (prior, bool)
	taken     func(key events.PublicKey, index int) bool // by what came before this place in the batch

	claimed  []events.PublicKey // keys that this batch registers for this service
	before   []pastKey          // keys that were current earlier in this batch
	answered []answered         // requests of this batch that were committed: few, so a list
}

// decide runs the checks of docs/protocol.md §6, in their order, and returns what becomes of the request.
func (d *decider) decide(in incoming) outcome {
	r := in.request
	if in.refusal != nil {
		return d.reject(in, in.refusal.Reason, in.refusal.Detail)
	}
	if r.NamesItsTarget() {
		if first, ok := d.answer(r.Nonce); ok && first.answers(r) {
			// A resent request can't fail the checks that it passed before, whatever the policy is by now.
			return outcome{in: in, verdict: duplicate, receiptNonce: first.receiptNonce, receiptBytes: first.receipt}
		}
	}
	if reason, detail := d.admit(in); reason != "" {
		return d.reject(in, reason, detail)
	}
	if reason, detail := d.authenticate(r); reason != "" {
		o := d.reject(in, reason, detail)
		o.sequence, o.earlier = d.service.sequence, slices.Clip(d.before)
		return o
	}
	if reason, detail := d.register(in); reason != "" {
		return d.reject(in, reason, detail)
	}
	return d.commit(in)
}

// answer finds a request of this nonce that was committed before, or earlier in this batch.
func (d *decider) answer(nonce events.Nonce) (prior, bool) {
	for i := range d.answered {
		if d.answered[i].nonce == nonce {
			return d.answered[i].prior, true
		}
	}
	return d.committed(nonce)
}

// admit checks what needs no cryptography: form against policy, target, freshness, and whom it is about.
func (d *decider) admit(in incoming) (events.Reason, string) {
	r := in.request
	age := in.storedAt - r.Timestamp
	switch {
	case r.HasGracePeriod && r.GracePeriod > d.policy.graceSeconds():
		return events.InvalidField, `The member "grace_period" is longer than this registry's own.`
	case !r.NamesItsTarget():
		return events.TargetMismatch, "The app or service inside the message is not the one in its subject."
	case age > d.policy.skewSeconds():
		return events.TimestampOutOfWindow, "The request was signed too long before it was published; sign a new one."
	case -age > d.policy.skewSeconds():
		return events.TimestampOutOfWindow, "The request's timestamp is in the future; check the signer's clock, and that it counts seconds."
	case r.Kind.ByMasterKey() && d.master.IsZero():
		return events.UnknownApp, "This registry does not know the app; its operator adds it with its Master Key."
	case r.Kind == events.Binding && d.service.active():
		return events.AlreadyBound, "The service is bound already; to replace a lost key, send a master_reset."
	case r.Kind != events.Binding && !d.service.active():
		return events.UnknownService, "The service is not bound; its developer binds it first."
	}
	return "", ""
}

// authenticate checks the signatures and the new key itself.
func (d *decider) authenticate(r *events.Request) (events.Reason, string) {
	signer, whose := d.master, "the developer's Master Key"
	if r.Kind == events.Rotation {
		signer, whose = d.service.key, "the service's current key"
	}
	switch {
	case !signer.Verify(r.Signed, r.Signature):
		return events.InvalidSignature, "The signature was not made by " + whose + " over the canonical form of the data."
	case r.Kind == events.Revocation:
		return "", ""
	case r.Proof.IsZero() && d.policy.RequireProof:
		return events.InvalidProof, `This registry requires "new_key_signature", the new key's signature over the same bytes.`
	case !r.Proof.IsZero() && !r.NewKey.Verify(r.Signed, r.Proof):
		return events.InvalidProof, `The "new_key_signature" was not made by the new key over the same bytes as "signature".`
	case r.NewKey.CheckStrength() != nil:
		return events.WeakKey, "The new key is not a canonical curve point of full order; generate another one."
	}
	return "", ""
}

// register checks what may happen only once: a key, a nonce, a rotation too soon.
func (d *decider) register(in incoming) (events.Reason, string) {
	r := in.request
	_, used := d.answer(r.Nonce)
	switch {
	case r.Kind != events.Revocation && (d.taken(r.NewKey, in.index) || slices.Contains(d.claimed, r.NewKey)):
		return events.KeyInUse, "The new key was registered before, and one key names one service for ever; generate another one."
	case used:
		return events.NonceReused, "The service used this nonce for another request; make a new one."
	case r.Kind == events.Rotation && d.tooMany(in.storedAt):
		return events.RateLimited, "The service rotates too often; wait a minute."
	}
	return "", ""
}

func (d *decider) tooMany(storedAt int64) bool {
	if d.policy.RotationsPerMinute < 0 {
		return false
	}
	n := 0
	for _, t := range d.service.recent {
		if t > storedAt-rateWindow {
			n++
		}
	}
	return n >= d.policy.RotationsPerMinute
}

// commit moves the service, and makes the event and the receipt that say so.
func (d *decider) commit(in incoming) outcome {
	r := in.request
	event := events.Invalidation{
		Origin: d.policy.Origin, Target: d.target, Event: r.Kind.Event(),
		OldKey: d.service.key, NewKey: r.NewKey,
		// The clock of this replica may be behind the one that made the last change: time never runs backwards
		// within one service.
		Timestamp: max(d.now, d.service.changedAt),
		Nonce:     events.NewNonce(), Sequence: d.service.sequence + 1,
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
	switch r.Kind {
	case events.Rotation:
		s.recent = append(slices.DeleteFunc(slices.Clone(s.recent), func(t int64) bool { return t <= in.storedAt-rateWindow }), in.storedAt)
	case events.Revocation:
		s.status, s.providerReceipt = events.Revoked, string(r.ProviderReceipt)
		return
	case events.Binding:
		s.boundAt, s.providerReceipt = o.event.Timestamp, ""
		s.serviceType, s.endpointURL = r.ServiceType, r.EndpointURL
	case events.Reset:
		s.serviceType, s.endpointURL = cmp.Or(r.ServiceType, s.serviceType), cmp.Or(r.EndpointURL, s.endpointURL)
	}
	d.claimed = append(d.claimed, r.NewKey)
}
