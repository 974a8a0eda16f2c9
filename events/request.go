package events

import (
	"crypto/sha256"
	"errors"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// RequestKind says what a request asks for. Its text is the request's `context` on the wire (§5).
type RequestKind string

// The four requests of §5.
const (
	Rotation   RequestKind = "key_rotation"
	Binding    RequestKind = "service_binding"
	Reset      RequestKind = "master_reset"
	Revocation RequestKind = "decommission"
)

// ByMasterKey reports whether the developer's Master Key signs such a request. The service's own
// key signs a rotation.
func (k RequestKind) ByMasterKey() bool { return k != Rotation }

// Request is a request that passed the first check of §6: every member has its type and its form,
// and there are no others. [ParseRequest] makes it. The registry decides whether it stands.
type Request struct {
	Kind      RequestKind
	Target    Target // the one in the subject
	Nonce     Nonce
	Timestamp int64 // seconds since the Unix epoch, as signed

	// Origin is the registry that the signed data names, or empty if it names none.
	Origin string
	// App and Service are the target that the signed data names. They are zero if a rotation leaves
	// them out.
	App     AppID
	Service ServiceID

	NewKey          PublicKey // zero in a revocation
	GracePeriod     int64     // seconds that a rotation asks for, if HasGracePeriod
	HasGracePeriod  bool
	EndEarlier      bool           // a rotation ends earlier keys at once, those in grace too
	ServiceType     string         // of a binding or reset, optional
	EndpointURL     string         // of a binding or reset, optional: an absolute URL
	ProviderReceipt jsontext.Value // of a revocation, optional: an object, unchanged

	Signed    []byte    // the canonical form of data, which the signatures cover
	Signature Signature // by the service's current key, or by the Master Key
	Proof     Signature // `new_key_signature`, zero if absent
}

// Digest returns a digest of the request's data. Two requests with the same digest ask for the same
// thing.
func (r *Request) Digest() [sha256.Size]byte { return sha256.Sum256(r.Signed) }

// NamesItsTarget reports whether the data's `app_id` and `service_id`, if present, equal those of
// the subject.
func (r *Request) NamesItsTarget() bool {
	return (r.App.IsZero() || r.App == r.Target.App) && (r.Service.IsZero() || r.Service == r.Target.Service)
}

// IsFor reports whether the request is for the registry of this origin: it names that registry or
// none.
func (r *Request) IsFor(origin string) bool { return r.Origin == "" || r.Origin == origin }

// ParseRequest reads one message of the request stream. With a [*Refusal] it still returns the
// target and, if they could be read, the kind and the nonce of the request, because a receipt names
// them. With [ErrSubject] there is no one to answer, because the subject names no service.
func ParseRequest(subject string, payload []byte) (*Request, error) {
	class, target, err := parseRequestSubject(subject)
	if err != nil {
		return nil, err
	}
	r := &Request{Target: target}
	m, err := readMessage(payload)
	if err != nil {
		r.Nonce = readableNonce(m)
		return r, err
	}
	r.Signed, r.Signature = m.canonical, m.signature
	r.Proof = m.envelope.signature("new_key_signature", false)
	if err := m.envelope.end(); err != nil {
		r.Nonce = readableNonce(m)
		return r, err
	}
	err = r.readData(class, &m.data)
	return r, err
}

// readableNonce returns the nonce of a request if it can be read.
func readableNonce(m *message) Nonce {
	nonce, _ := ParseNonce(string(m.data.peek("nonce")))
	return nonce
}

// readData leaves Kind empty unless it is one of ours: it becomes the label of a metric, and a
// stranger chooses the text.
func (r *Request) readData(class string, f *fields) error {
	r.Nonce = f.nonce("nonce", true)
	r.Origin = f.origin("origin")
	context, _ := f.text("context", true)
	kind := oneOf(context, Rotation, Binding, Reset, Revocation)
	switch {
	case f.err != nil:
	case class == RotationSubject && kind == Rotation:
		r.Kind = kind
		r.readRotation(f)
	case class == BindingSubject && (kind == Binding || kind == Reset):
		r.Kind = kind
		r.readBinding(f)
	case class == RevocationSubject && kind == Revocation:
		r.Kind = kind
		r.readRevocation(f)
	default:
		f.fail(`The member "context" is not one that belongs to this subject.`)
	}
	return f.end()
}

func (r *Request) readRotation(f *fields) {
	r.App, r.Service = f.appID("app_id", false), f.serviceID("service_id", false)
	r.NewKey = f.publicKey("new_public_key", true)
	r.Timestamp = f.time("rotation_timestamp")
	r.GracePeriod, r.HasGracePeriod = f.integer("grace_period", false)
	r.EndEarlier = f.yes("end_earlier")
	if r.EndEarlier && (!r.HasGracePeriod || r.GracePeriod != 0) {
		f.fail(`The member "end_earlier" goes with a "grace_period" of 0 only.`)
	}
}

func (r *Request) readBinding(f *fields) {
	r.App, r.Service = f.appID("app_id", true), f.serviceID("service_id", true)
	r.NewKey = f.publicKey("public_key", true)
	r.Timestamp = f.time("timestamp")
	r.ServiceType, _ = f.shown("service_type")
	r.EndpointURL = f.endpoint("endpoint_url")
}

func (r *Request) readRevocation(f *fields) {
	r.App, r.Service = f.appID("app_id", true), f.serviceID("service_id", true)
	r.Timestamp = f.time("timestamp")
	r.ProviderReceipt = f.object("provider_receipt")
	if !r.Proof.IsZero() {
		f.fail(`The member "new_key_signature" is not one that a revocation can have.`)
	}
}

// Proofs says which requests a registry takes only with `new_key_signature`, a proof that the
// sender has the new key (§5).
type Proofs string

// The values of [Proofs]. The default is [ProofsOwn]: bindings and resets are this project's own
// payloads, and the spec's rotation has no proof.
const (
	ProofsNone Proofs = "none"
	ProofsOwn  Proofs = "own"
	ProofsAll  Proofs = "all"
)

// ErrProofs means that a text is not a value of [Proofs].
var ErrProofs = errors.New("a registry requires none, own or all: own is a proof in bindings and resets, all in rotations too")

// ParseProofs returns s as a [Proofs], or [ErrProofs].
func ParseProofs(s string) (Proofs, error) {
	if !slices.Contains([]Proofs{ProofsNone, ProofsOwn, ProofsAll}, Proofs(s)) {
		return "", ErrProofs
	}
	return Proofs(s), nil
}

// Need reports whether a request of this kind needs a proof.
func (p Proofs) Need(kind RequestKind) bool {
	return kind != Revocation && (p == ProofsAll || p == ProofsOwn && kind != Rotation)
}
