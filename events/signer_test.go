package events_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"testing"

	"omiappreg.org/keyrotation/events"
)

// brokenKMS names one key and signs with another, or with nothing.
type brokenKMS struct {
	crypto.Signer
	sign func(message []byte) ([]byte, error)
}

func (k brokenKMS) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	return k.sign(message)
}

// TestSignWith: what a KMS signs is checked before it is sent, and what it says is passed on.
func TestSignWith(t *testing.T) {
	t.Parallel()
	key, other := events.GenerateSigningKey(), events.GenerateSigningKey()
	message, away := []byte("a message"), errors.New("the KMS is away")
	if s, err := events.SignWith(key.Private(), message); err != nil || !key.Public().Verify(message, s) {
		t.Errorf("a good key: %v", err)
	}
	for name, tc := range map[string]struct {
		sign func([]byte) ([]byte, error)
		want error
	}{
		"another key":   {func(m []byte) ([]byte, error) { s := other.Sign(m); return sigBytes(t, s), nil }, events.ErrSigner},
		"another text":  {func([]byte) ([]byte, error) { s := key.Sign([]byte("another")); return sigBytes(t, s), nil }, events.ErrSigner},
		"half of one":   {func(m []byte) ([]byte, error) { s := key.Sign(m); return sigBytes(t, s)[:32], nil }, events.ErrSigner},
		"nobody at all": {func([]byte) ([]byte, error) { return nil, away }, away},
	} {
		if _, err := events.SignWith(brokenKMS{key.Private(), tc.sign}, message); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.SignWith(p256, message); !errors.Is(err, events.ErrNotEd25519) {
		t.Errorf("a key of another algorithm: %v", err)
	}
	draft := events.Draft{Kind: events.Rotation, Target: events.Target{}, Timestamp: 1, Nonce: events.NewNonce()}
	if _, err := draft.SignWith(key.Private(), p256); !errors.Is(err, events.ErrNotEd25519) {
		t.Errorf("a new key of another algorithm: %v", err)
	}
}

// sigBytes returns a signature's 64 bytes.
func sigBytes(t *testing.T, s events.Signature) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}
