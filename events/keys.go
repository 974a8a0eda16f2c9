package events

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/oasisprotocol/curve25519-voi/curve"
	voi "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

const (
	keyPrefix    = "ed25519:"
	keyTextLen   = len(keyPrefix) + 43 // base64url of 32 bytes, without padding
	signatureLen = 86                  // base64url of 64 bytes, without padding
	keyIDLen     = 16
)

// strict64 refuses non-zero trailing bits. It still skips CR and LF, which every caller rules out
// by the length or by looking for them.
//
//nolint:gochecknoglobals // a constant, of a type that has none
var strict64 = base64.RawURLEncoding.Strict()

// Errors of keys and signatures (docs/protocol.md §2).
var (
	ErrPublicKey  = errors.New("a public key is written ed25519: and 43 characters of unpadded base64url")
	ErrSignature  = errors.New("a signature is written as 86 characters of unpadded base64url")
	ErrNotEd25519 = errors.New("the key is not an Ed25519 key")
	ErrSigner     = errors.New("the signer's signature does not verify under its own public key")
	ErrWeakKey    = errors.New("the public key is not the canonical encoding of a curve point, or a point of small order, or of mixed order")
)

// PublicKey is an Ed25519 public key (RFC 8032) of the right form. It is comparable. The zero value
// means "absent": its 32 zero bytes are a point of small order, which no service may register.
type PublicKey struct{ b [ed25519.PublicKeySize]byte }

// ParsePublicKey decodes the text form of §2 strictly, or returns [ErrPublicKey]. A key of the
// right form can still be weak: see [PublicKey.CheckStrength].
func ParsePublicKey(s string) (PublicKey, error) { return publicKeyOf([]byte(s)) }

func publicKeyOf(s []byte) (PublicKey, error) {
	if len(s) != keyTextLen || string(s[:len(keyPrefix)]) != keyPrefix {
		return PublicKey{}, ErrPublicKey
	}
	var k PublicKey
	if n, err := strict64.Decode(k.b[:], s[len(keyPrefix):]); err != nil || n != len(k.b) {
		return PublicKey{}, ErrPublicKey
	}
	return k, nil
}

// PublicKeyFromBytes returns the key with these 32 bytes, the form for a database, or
// [ErrPublicKey].
func PublicKeyFromBytes(b []byte) (PublicKey, error) {
	if len(b) != ed25519.PublicKeySize {
		return PublicKey{}, ErrPublicKey
	}
	return PublicKey{[ed25519.PublicKeySize]byte(b)}, nil
}

// PublicKeyOf returns the public half of a key that is kept elsewhere, or [ErrNotEd25519].
func PublicKeyOf(key crypto.Signer) (PublicKey, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return PublicKey{}, ErrNotEd25519
	}
	return PublicKeyFromBytes(public)
}

// Bytes returns the key's 32 bytes.
func (k PublicKey) Bytes() []byte { return k.b[:] }

// String returns the text form of §2.
func (k PublicKey) String() string {
	b := make([]byte, 0, keyTextLen)
	return string(strict64.AppendEncode(append(b, keyPrefix...), k.b[:]))
}

// IsZero reports whether the key is absent.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// MarshalText implements encoding.TextMarshaler.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it fails with [ErrPublicKey].
func (k *PublicKey) UnmarshalText(b []byte) (err error) {
	*k, err = ParsePublicKey(string(b))
	return err
}

// Verify reports whether the key made this signature of message, by exactly the rule of the
// standard library.
func (k PublicKey) Verify(message []byte, s Signature) bool {
	return ed25519.Verify(k.b[:], message, s.b[:])
}

// CheckStrength returns [ErrWeakKey] if the key must not be registered (§2).
func (k PublicKey) CheckStrength() error {
	point, err := k.point()
	if err == nil && !point.IsTorsionFree() {
		err = ErrWeakKey
	}
	return err
}

// point returns the point that the key encodes, unless the key must not be registered.
func (k PublicKey) point() (point curve.EdwardsPoint, err error) {
	if !decode(&point, k.b[:]) || point.IsSmallOrder() {
		return point, ErrWeakKey
	}
	return point, nil
}

// KeyID returns the hint by which the registry's messages choose among trusted keys: the first 16
// characters of the base64url SHA-256 of the key's text form (§7.1).
func (k PublicKey) KeyID() string {
	sum := sha256.Sum256([]byte(k.String()))
	return base64.RawURLEncoding.EncodeToString(sum[:])[:keyIDLen]
}

// Signature is an Ed25519 signature of the right form. The zero value means "absent". 64 zero bytes
// are not absent: a proof that is present is always checked.
type Signature struct {
	b       [ed25519.SignatureSize]byte
	present bool
}

// ParseSignature decodes the text form of §2 strictly, or returns [ErrSignature].
func ParseSignature(s string) (Signature, error) { return signatureOf([]byte(s)) }

func signatureOf(s []byte) (Signature, error) {
	if len(s) != signatureLen {
		return Signature{}, ErrSignature
	}
	sig := Signature{present: true}
	if n, err := strict64.Decode(sig.b[:], s); err != nil || n != len(sig.b) {
		return Signature{}, ErrSignature
	}
	return sig, nil
}

// SignatureFromBytes returns the signature with these 64 bytes, or [ErrSignature].
func SignatureFromBytes(b []byte) (Signature, error) {
	if len(b) != ed25519.SignatureSize {
		return Signature{}, ErrSignature
	}
	return Signature{[ed25519.SignatureSize]byte(b), true}, nil
}

// String returns the text form of §2.
func (s Signature) String() string { return strict64.EncodeToString(s.b[:]) }

// IsZero reports whether the signature is absent.
func (s Signature) IsZero() bool { return !s.present }

// MarshalText implements encoding.TextMarshaler.
func (s Signature) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it fails with [ErrSignature].
func (s *Signature) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSignature(string(b))
	return err
}

// SignWith signs message with an Ed25519 key that may be kept elsewhere, and checks the result. If
// a KMS signs with a key other than the one it names, SignWith finds out before the message is
// refused.
func SignWith(key crypto.Signer, message []byte) (Signature, error) {
	public, err := PublicKeyOf(key)
	if err != nil {
		return Signature{}, err
	}
	b, err := key.Sign(nil, message, crypto.Hash(0))
	if err != nil {
		return Signature{}, fmt.Errorf("sign: %w", err)
	}
	s, err := SignatureFromBytes(b)
	if err != nil || !public.Verify(message, s) {
		return Signature{}, ErrSigner
	}
	return s, nil
}

// SigningKey is an Ed25519 private key. It prints as its public key, so it can't reach a log by
// accident.
type SigningKey struct {
	// private is a function because fmt prints only the address of one. In an unexported field, and
	// with a verb like %d, fmt ignores String, and prints slices and even the targets of pointers.
	private func() ed25519.PrivateKey
	public  PublicKey
	id      string // [PublicKey.KeyID] of the public half
}

// GenerateSigningKey makes a new key from the system's random numbers.
func GenerateSigningKey() SigningKey {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		// documented never to happen
		panic("events: the system's randomness failed: " + err.Error())
	}
	return NewSigningKey(private)
}

// NewSigningKey wraps a private key.
func NewSigningKey(private ed25519.PrivateKey) SigningKey {
	public := PublicKey{[ed25519.PublicKeySize]byte(private.Public().(ed25519.PublicKey))}
	return SigningKey{func() ed25519.PrivateKey { return private }, public, public.KeyID()}
}

// Public returns the public half.
func (k SigningKey) Public() PublicKey { return k.public }

// Private returns the key itself, so that it can be written to a file, or nil if there is none.
func (k SigningKey) Private() ed25519.PrivateKey {
	if k.IsZero() {
		return nil
	}
	return k.private()
}

// IsZero reports whether there is no key.
func (k SigningKey) IsZero() bool { return k.private == nil }

// Sign signs message. The result is the same as the standard library's, because Ed25519 leaves a
// signer no choice (RFC 8032 §5.1.6), in half the time if the processor has AVX2.
// [PublicKey.Verify] or our own equation verifies it.
func (k SigningKey) Sign(message []byte) Signature {
	return Signature{[ed25519.SignatureSize]byte(voi.Sign(voi.PrivateKey(k.private()), message)), true}
}

// String returns the public half, marked as such.
func (k SigningKey) String() string { return "private key of " + k.public.String() }

// GoString keeps the private half out of %#v.
func (k SigningKey) GoString() string { return k.String() }

const (
	// weakSums is the number of random sums that stand for many points. A point of mixed order
	// escapes all of them with a probability of 2⁻¹⁶. A key that escapes harms only its owner: most
	// of its signatures don't verify.
	weakSums = 16
	// weakWorthwhile is the number of points from which on sums are faster than one multiplication
	// for each point.
	weakWorthwhile = 20
	// weakTogether is the number of points that share a table of all their sums. With 16 sums, 3
	// points cost the fewest additions: 6 for each point.
	weakTogether = 3
)

// WeakKeys returns the keys that must not be registered, by the rule of [PublicKey.CheckStrength].
//
// To find a key of mixed order costs a multiplication, two thirds of the cost of a verification. So
// for many keys WeakKeys checks random sums: a sum has a component of small order if one of its
// points has one, unless two cancel, and a random bit decides whether a point is in the sum. If a
// sum has such a component, each key is checked alone.
func WeakKeys(keys []PublicKey) map[PublicKey]bool {
	weak := map[PublicKey]bool{}
	points := make([]curve.EdwardsPoint, 0, len(keys))
	known := make([]PublicKey, 0, len(keys))
	for _, k := range keys {
		p, err := k.point()
		if err != nil {
			weak[k] = true
			continue
		}
		points, known = append(points, p), append(known, k)
	}
	if len(points) >= weakWorthwhile && noneMixed(points) {
		return weak
	}
	for i := range points {
		if !points[i].IsTorsionFree() {
			weak[known[i]] = true
		}
	}
	return weak
}

// noneMixed reports whether no sum has a component of small order.
func noneMixed(points []curve.EdwardsPoint) bool {
	var sums [weakSums]curve.EdwardsPoint
	for i := range sums {
		sums[i].Identity()
	}
	tables := (len(points) + weakTogether - 1) / weakTogether
	random := make([]byte, tables*weakSums)
	_, _ = rand.Read(random)                        // never fails
	var table [1 << weakTogether]curve.EdwardsPoint // sums, by which of the points they include
	table[0].Identity()
	for n := range tables {
		own := points[n*weakTogether : min((n+1)*weakTogether, len(points))]
		for i := range own {
			for rest := range 1 << i {
				table[rest|1<<i].Add(&table[rest], &own[i])
			}
		}
		for i := range sums {
			if in := random[n*weakSums+i] & (1<<len(own) - 1); in != 0 {
				sums[i].Add(&sums[i], &table[in])
			}
		}
	}
	for i := range sums {
		if !sums[i].IsTorsionFree() {
			return false
		}
	}
	return true
}
