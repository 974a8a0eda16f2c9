package events

// EventKind says what happened to the keys of a service (§7.1).
type EventKind string

// The events of §7.1.
const (
	ServiceBinding    EventKind = "SERVICE_BINDING"
	KeyRotation       EventKind = "KEY_ROTATION"
	MasterReset       EventKind = "MASTER_RESET"
	ServiceRevocation EventKind = "SERVICE_REVOCATION"
)

// Event returns the event that a committed request of this kind makes.
func (k RequestKind) Event() EventKind {
	switch k {
	case Rotation:
		return KeyRotation
	case Binding:
		return ServiceBinding
	case Reset:
		return MasterReset
	default:
		return ServiceRevocation
	}
}

// Invalidation is one committed change to the keys of a service (§7.1). [Trust.Invalidation] makes
// it from a message, and checks that its members fit its event.
type Invalidation struct {
	Origin            string
	Target            Target
	Event             EventKind
	OldKey            PublicKey // zero in a SERVICE_BINDING
	NewKey            PublicKey // zero in a SERVICE_REVOCATION
	GracePeriodExpiry int64     // seconds since the Unix epoch: OldKey is refused from then on
	Timestamp         int64     // of the commit, seconds since the Unix epoch
	Nonce             Nonce
	Sequence          int64 // place in the service's history, from 1; 0 if the registry sends none
	EndEarlier        bool  // a KEY_ROTATION that ends earlier keys as a MASTER_RESET does
}

// EndsEarlierKeys reports whether the event at once ends every key that the service had before it.
func (i *Invalidation) EndsEarlierKeys() bool {
	return i.EndEarlier || i.Event == MasterReset || i.Event == ServiceRevocation
}

// Subject returns the subject on which the event is published (§4).
func (i *Invalidation) Subject() string { return InvalidationSubject + i.Target.String() }

// Sign returns the message to publish.
func (i *Invalidation) Sign(key SigningKey) []byte {
	s := newStatement(len(i.Origin) + len(i.Target.App.s) + len(i.Target.Service.s) + len(i.Nonce.s))
	s.str("origin", i.Origin)
	s.plain("app_id", i.Target.App.s)
	s.plain("service_id", i.Target.Service.s)
	s.str("event", string(i.Event))
	s.key("old_public_key", i.OldKey)
	s.key("new_public_key", i.NewKey)
	s.integer("grace_period_expiry", i.GracePeriodExpiry)
	s.integer("timestamp", i.Timestamp)
	s.plain("nonce", i.Nonce.s)
	if i.Sequence != 0 {
		s.integer("sequence", i.Sequence)
	}
	if i.EndEarlier {
		s.yes("end_earlier")
	}
	return s.sign(key)
}

// readInvalidation reads data that the registry is known to have signed.
func readInvalidation(f *fields) (Invalidation, error) {
	event, _ := f.text("event", true)
	i := Invalidation{Event: oneOf(event, ServiceBinding, KeyRotation, MasterReset, ServiceRevocation)}
	if i.Event == "" {
		if f.err != nil {
			return i, f.err
		}
		return i, refuse(UnknownEvent, "This version of the protocol does not know the event, which may matter.")
	}
	i.Target = Target{f.appID("app_id", true), f.serviceID("service_id", true)}
	i.OldKey = f.publicKey("old_public_key", i.Event != ServiceBinding)
	i.NewKey = f.publicKey("new_public_key", i.Event != ServiceRevocation)
	i.GracePeriodExpiry, i.Timestamp = f.time("grace_period_expiry"), f.time("timestamp")
	i.Nonce = f.nonce("nonce", true)
	sequence, hasSequence := f.integer("sequence", false)
	i.Sequence, i.EndEarlier = sequence, f.yes("end_earlier")
	i.checkMembers(f, hasSequence)
	return i, f.done()
}

// checkMembers checks the event against the table of §7.1.
func (i *Invalidation) checkMembers(f *fields, hasSequence bool) {
	switch {
	case f.err != nil:
	case hasSequence && i.Sequence == 0:
		f.fail(`The member "sequence" counts from 1.`)
	case i.OldKey.IsZero() != (i.Event == ServiceBinding):
		f.fail(`The member "old_public_key" does not fit the event.`)
	case i.NewKey.IsZero() != (i.Event == ServiceRevocation):
		f.fail(`The member "new_public_key" does not fit the event.`)
	case i.Event == KeyRotation && i.GracePeriodExpiry < i.Timestamp,
		i.Event != KeyRotation && i.GracePeriodExpiry != i.Timestamp:
		f.fail(`The member "grace_period_expiry" does not fit the event.`)
	case i.EndEarlier && (i.Event != KeyRotation || i.GracePeriodExpiry != i.Timestamp):
		f.fail(`The member "end_earlier" does not fit the event.`)
	}
}

// SequenceOf returns the sequence of an event's message, or 0 if it has none. It doesn't check the
// signature: use it only on messages that you published yourself.
func SequenceOf(payload []byte) int64 {
	sequence, _ := NamesOf(payload)
	return sequence
}

// NamesOf returns the sequence and the nonce of an event's message, or zero if it has none. It
// doesn't check the signature: use it only if you know which nonce the trusted event of this
// sequence has.
func NamesOf(payload []byte) (sequence int64, nonce Nonce) {
	m, err := readMessage(payload)
	if err != nil {
		return 0, Nonce{}
	}
	sequence, _ = m.data.integer("sequence", false)
	return sequence, m.data.nonce("nonce", false)
}
