package events

import (
	"errors"
	"slices"
	"time"

	"github.com/oasisprotocol/curve25519-voi/curve"
)

// Trust holds the keys of one registry, and its domain name. A reader of the registry's messages
// believes exactly these. Every message of the registry enters a program through it (§7.2).
//
// A key that has ended is believed only for messages that were stored before its end. Unless
// [Trust.At] says when a message was stored, it counts as stored now.
type Trust struct {
	origin string
	keys   []trustedKey
	at     moment
}

type trustedKey struct {
	id     string
	key    PublicKey
	end    End
	points []*curve.ExpandedEdwardsPoint // the curve's base point, and the key's point
}

func newTrustedKey(k TrustedKey) (trustedKey, error) {
	point, err := k.PublicKey.point()
	if err != nil {
		return trustedKey{}, err
	}
	return trustedKey{k.PublicKey.KeyID(), k.PublicKey, k.End, []*curve.ExpandedEdwardsPoint{
		curve.NewExpandedEdwardsPoint(curve.ED25519_BASEPOINT_POINT), curve.NewExpandedEdwardsPoint(&point),
	}}, nil
}

// ErrNoTrust means that a Trust would believe no one.
var ErrNoTrust = errors.New("trust needs the registry's domain name and at least one of its public keys")

// NewTrust returns a Trust in these keys of the registry at origin, which have no end.
func NewTrust(origin string, keys ...PublicKey) (Trust, error) {
	trusted := make([]TrustedKey, len(keys))
	for i, k := range keys {
		trusted[i].PublicKey = k
	}
	return NewTrustUntil(origin, trusted...)
}

// NewTrustUntil returns a Trust in these keys of the registry at origin, each until its end. If a
// key is named twice, the earlier end counts.
func NewTrustUntil(origin string, keys ...TrustedKey) (Trust, error) {
	if origin == "" || len(keys) == 0 {
		return Trust{}, ErrNoTrust
	}
	t := Trust{origin: origin}
	for _, k := range keys {
		if i := slices.IndexFunc(t.keys, func(have trustedKey) bool { return have.key == k.PublicKey }); i >= 0 {
			t.keys[i].end = t.keys[i].end.earlier(k.End)
			continue
		}
		trusted, err := newTrustedKey(k)
		if err != nil {
			return Trust{}, err
		}
		t.keys = append(t.keys, trusted)
	}
	return t, nil
}

// At returns the trust in a message that JetStream stored at this time and place of the stream of
// events. Place 0 means that it is from another stream.
func (t Trust) At(stored time.Time, place uint64) Trust {
	t.at = moment{stored, place}
	return t
}

// Origin returns the registry's domain name.
func (t Trust) Origin() string { return t.origin }

// PublicKeys returns the keys that are trusted for messages that the registry signs now.
func (t Trust) PublicKeys() []PublicKey {
	var keys []PublicKey
	for _, k := range t.keys {
		if k.end.before(t.at) {
			keys = append(keys, k.key)
		}
	}
	return keys
}

// TrustedKeys returns all keys, with their ends.
func (t Trust) TrustedKeys() []TrustedKey {
	keys := make([]TrustedKey, len(t.keys))
	for i, k := range t.keys {
		keys[i] = TrustedKey{k.key, k.end}
	}
	return keys
}

// Invalidation reads a message of the invalidation stream. The registry must have signed it, it
// must be about the service in its subject, and every member must follow §7.1. Otherwise the error
// is a [*Refusal] that says why the message must not be applied.
func (t Trust) Invalidation(subject string, payload []byte) (Invalidation, error) {
	m, err := t.open(payload)
	if err != nil {
		return Invalidation{}, err
	}
	return t.readInvalidation(subject, m)
}

// SignedInvalidation is [Trust.Invalidation], and also returns the trusted key that signed the
// message.
func (t Trust) SignedInvalidation(subject string, payload []byte) (Invalidation, PublicKey, error) {
	m, err := readMessage(payload)
	if err != nil {
		return Invalidation{}, PublicKey{}, err
	}
	signer, err := t.signer(m, t.at)
	if err != nil {
		return Invalidation{}, PublicKey{}, err
	}
	i, err := t.readInvalidation(subject, m)
	return i, signer, err
}

// readInvalidation reads a message that the registry is known to have signed.
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

// Receipt reads a message of the receipt stream, or returns a [*Refusal] that says why it can't be
// believed.
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
	if err == nil {
		_, err = t.signer(m, t.at)
	}
	return m, err
}

func (t Trust) checkOrigin(m *message) error {
	origin, ok := m.data.text("origin", true)
	if !ok {
		return m.data.err
	}
	if string(origin) != t.origin {
		return refuse(WrongOrigin, "The message is from another registry.")
	}
	return nil
}

// hinted returns the index of the key that key_id hints at, or -1. The hint is not signed and may
// be wrong.
func (t Trust) hinted(m *message) int {
	hint := m.envelope.peek("key_id")
	return slices.IndexFunc(t.keys, func(k trustedKey) bool { return k.id == string(hint) })
}

// signer returns the key that signed a message of this moment, or a [*Refusal]. It tries the hinted
// key first, and keys that had ended last.
func (t Trust) signer(m *message, at moment) (PublicKey, error) {
	ended := func(i int) bool { return !t.keys[i].end.before(at) }
	signed := func(i int) bool { return t.keys[i].key.Verify(m.canonical, m.signature) }
	first := t.hinted(m)
	if first >= 0 && !ended(first) && signed(first) {
		return t.keys[first].key, nil
	}
	for i := range t.keys {
		if i != first && !ended(i) && signed(i) {
			return t.keys[i].key, nil
		}
	}
	for i := range t.keys {
		if ended(i) && signed(i) {
			return PublicKey{}, refuse(EndedRegistryKey, "The registry key that made this signature is trusted only for earlier messages.")
		}
	}
	return PublicKey{}, refuse(UntrustedSignature, "No trusted registry key made this signature.")
}

func sameTarget(subject, prefix string, inside Target) error {
	target, err := targetOf(subject, prefix)
	if err != nil || target != inside {
		return refuse(TargetMismatch, "The subject names another service than the signed data.")
	}
	return nil
}
