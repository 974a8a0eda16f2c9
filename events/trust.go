package events

import (
	"errors"
	"slices"

	"github.com/oasisprotocol/curve25519-voi/curve"
)

// Trust is whom a reader of the registry's messages believes: the keys of one registry, and its domain name.
// Every message of the registry's enters a program through it (§7.2).
type Trust struct {
	origin string
	keys   []trustedKey
}

type trustedKey struct {
	id     string
	key    PublicKey
	points []*curve.ExpandedEdwardsPoint // the curve's base point, and what the key encodes
}

func newTrustedKey(k PublicKey) (trustedKey, error) {
	point, err := k.point()
	if err != nil {
		return trustedKey{}, err
	}
	return trustedKey{k.KeyID(), k, []*curve.ExpandedEdwardsPoint{
		curve.NewExpandedEdwardsPoint(curve.ED25519_BASEPOINT_POINT), curve.NewExpandedEdwardsPoint(&point),
	}}, nil
}

// ErrNoTrust means that a Trust would believe nobody.
var ErrNoTrust = errors.New("trust needs the registry's domain name and at least one of its public keys")

// NewTrust returns a Trust in these keys of the registry at origin.
func NewTrust(origin string, keys ...PublicKey) (Trust, error) {
	if origin == "" || len(keys) == 0 {
		return Trust{}, ErrNoTrust
	}
	t := Trust{origin: origin}
	for _, k := range keys {
		trusted, err := newTrustedKey(k)
		if err != nil {
			return Trust{}, err
		}
		t.keys = append(t.keys, trusted)
	}
	return t, nil
}

// Origin returns the registry's domain name.
func (t Trust) Origin() string { return t.origin }

// PublicKeys returns the registry's keys that are trusted.
func (t Trust) PublicKeys() []PublicKey {
	keys := make([]PublicKey, len(t.keys))
	for i, k := range t.keys {
		keys[i] = k.key
	}
	return keys
}

// Invalidation reads a message of the invalidation stream: the registry's, about the service in its subject, and
// in every member what §7.1 says. Anything else is a [*Refusal], which says why it must not be applied.
func (t Trust) Invalidation(subject string, payload []byte) (Invalidation, error) {
	m, err := t.open(payload)
	if err != nil {
		return Invalidation{}, err
	}
	return t.readInvalidation(subject, m)
}

// SignedInvalidation is [Trust.Invalidation], and says which of the trusted keys signed the message.
func (t Trust) SignedInvalidation(subject string, payload []byte) (Invalidation, PublicKey, error) {
	m, err := readMessage(payload)
	if err != nil {
		return Invalidation{}, PublicKey{}, err
	}
	signer, ok := t.signer(m)
	if !ok {
		return Invalidation{}, PublicKey{}, errUntrusted()
	}
	i, err := t.readInvalidation(subject, m)
	return i, signer, err
}

// readInvalidation reads a message whose signature is known to be the registry's.
func (t Trust) readInvalidation(subject string, m *message) (Invalidation, error) {
	if err := t.checkOrigin(m); err != nil {
		return Invalidation{}, err
	}
	i, err := readInvalidation(&m.data)
	if err != nil {
		return Invalidation{}, err
	}
	i.Origin = t.origin
	return i, sameTarget(subject, InvalidationSubject, i.Target)
}

// Receipt reads a message of the receipt stream, or says why it can't be believed ([*Refusal]).
func (t Trust) Receipt(subject string, payload []byte) (Receipt, error) {
	m, err := t.open(payload)
	if err == nil {
		err = t.checkOrigin(m)
	}
	if err != nil {
		return Receipt{}, err
	}
	r, err := readReceipt(&m.data)
	if err != nil {
		return Receipt{}, err
	}
	r.Origin = t.origin
	return r, sameTarget(subject, ReceiptSubject, r.Target)
}

// open reads an envelope that a trusted key signed.
func (t Trust) open(payload []byte) (*message, error) {
	m, err := readMessage(payload)
	if err == nil && !t.signed(m) {
		err = errUntrusted()
	}
	return m, err
}

func errUntrusted() error {
	return refuse(UntrustedSignature, "No trusted registry key made this signature.")
}

func (t Trust) checkOrigin(m *message) error {
	origin, ok := m.data.text("origin", true)
	if !ok {
		return m.data.err
	}
	if string(origin) != t.origin {
		return refuse(WrongOrigin, "The message is another registry's.")
	}
	return nil
}

// hinted returns the place of the key that key_id hints at, or -1. The hint may be wrong: it is not signed.
func (t Trust) hinted(m *message) int {
	hint := m.envelope.peek("key_id")
	return slices.IndexFunc(t.keys, func(k trustedKey) bool { return k.id == string(hint) })
}

// signed says whether one of the keys signed a message.
func (t Trust) signed(m *message) bool {
	_, ok := t.signer(m)
	return ok
}

// signer tries the key that is hinted at first, then the others.
func (t Trust) signer(m *message) (PublicKey, bool) {
	first := t.hinted(m)
	if first >= 0 && t.keys[first].key.Verify(m.canonical, m.signature) {
		return t.keys[first].key, true
	}
	for i := range t.keys {
		if i != first && t.keys[i].key.Verify(m.canonical, m.signature) {
			return t.keys[i].key, true
		}
	}
	return PublicKey{}, false
}

func sameTarget(subject, prefix string, inside Target) error {
	target, err := targetOf(subject, prefix)
	if err != nil || target != inside {
		return refuse(TargetMismatch, "The subject names another service than the signed data.")
	}
	return nil
}
