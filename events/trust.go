package events

import (
	"errors"
	"slices"
)

// Trust is whom a reader of the registry's messages believes: the keys of one registry, and its domain name.
// Every message of the registry's enters a program through it (§7.2).
type Trust struct {
	origin string
	keys   []trustedKey
}

type trustedKey struct {
	id  string
	key PublicKey
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
		if err := k.CheckStrength(); err != nil {
			return Trust{}, err
		}
		t.keys = append(t.keys, trustedKey{k.KeyID(), k})
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

// open reads an envelope that a trusted key signed and whose origin is the trusted one.
func (t Trust) open(payload []byte) (message, error) {
	m, err := readMessage(payload)
	if err != nil {
		return m, err
	}
	err = t.check(&m) // before m is copied: it takes members
	return m, err
}

func (t Trust) check(m *message) error {
	if !t.signed(m) {
		return refuse(UntrustedSignature, "No trusted registry key made this signature.")
	}
	origin, ok := m.data.str("origin", true)
	if !ok {
		return m.data.err
	}
	if origin != t.origin {
		return refuse(WrongOrigin, "The message is another registry's.")
	}
	return nil
}

// signed tries the key that key_id hints at first. The hint may be wrong: it is not signed.
func (t Trust) signed(m *message) bool {
	hint, _ := m.envelope.str("key_id", false)
	verifies := func(k trustedKey) bool { return k.key.Verify(m.canonical, m.signature) }
	hinted := slices.IndexFunc(t.keys, func(k trustedKey) bool { return k.id == hint })
	if hinted >= 0 && verifies(t.keys[hinted]) {
		return true
	}
	return slices.ContainsFunc(t.keys, func(k trustedKey) bool { return k.id != hint && verifies(k) })
}

func sameTarget(subject, prefix string, inside Target) error {
	target, err := targetOf(subject, prefix)
	if err != nil || target != inside {
		return refuse(TargetMismatch, "The subject names another service than the signed data.")
	}
	return nil
}
