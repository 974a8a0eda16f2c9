package keyformat

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"omiappreg.org/keyrotation/events"
)

const (
	keyType      = "OKP"
	curve        = "Ed25519"
	forSignature = "sig"
)

// JSONWebKey is a public key in the form of RFC 7517 and RFC 8037.
type JSONWebKey struct {
	KeyType string `json:"kty"`
	Curve   string `json:"crv"`
	X       string `json:"x"`
	KeyID   string `json:"kid"` // its [Thumbprint]
	Use     string `json:"use"`
}

// NewJSONWebKey returns a key's JWK. It has no alg, because crv says everything. A library that
// finds EdDSA there refuses a token that says Ed25519 (RFC 9864), and the other way round.
func NewJSONWebKey(key events.PublicKey) JSONWebKey {
	return JSONWebKey{
		KeyType: keyType, Curve: curve, X: base64.RawURLEncoding.EncodeToString(key.Bytes()),
		KeyID: Thumbprint(key), Use: forSignature,
	}
}

// Thumbprint returns the name of a key by RFC 7638, with SHA-256 in base64url.
func Thumbprint(key events.PublicKey) string {
	x := base64.RawURLEncoding.EncodeToString(key.Bytes())
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + x + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// parseJWK reads a JWK; one with d is private. It ignores members that it does not know (RFC 7517
// §4).
func parseJWK(content []byte) (Key, error) {
	var jwk struct {
		KeyType   string         `json:"kty"`
		Curve     string         `json:"crv"`
		X         string         `json:"x"`
		D         jsontext.Value `json:"d"`
		Use       string         `json:"use"`
		Algorithm string         `json:"alg"`
		Keys      jsontext.Value `json:"keys"` // of a JWK Set
	}
	if err := json.Unmarshal(content, &jwk); err != nil {
		// the parser's own words could quote the key
		return Key{}, fmt.Errorf("%w: this is no JWK", ErrFormat)
	}
	switch {
	case jwk.Keys != nil:
		return Key{}, fmt.Errorf("%w: a JWK Set is not a key, but one of its keys is", ErrMore)
	case jwk.KeyType == "":
		return Key{}, fmt.Errorf("%w: a JWK has a kty", ErrFormat)
	case jwk.KeyType != keyType, jwk.Curve != curve, jwk.Use != "" && jwk.Use != forSignature,
		// the latter is RFC 9864's name
		jwk.Algorithm != "" && jwk.Algorithm != "EdDSA" && jwk.Algorithm != curve:
		return Key{}, ErrAlgorithm
	}
	public, err := decodeMember("x", jwk.X)
	if err != nil {
		return Key{}, err
	}
	if jwk.D == nil {
		return publicKey(public)
	}
	var d string
	if err := json.Unmarshal(jwk.D, &d); err != nil {
		return Key{}, fmt.Errorf("%w: the d of a JWK is a string", ErrFormat)
	}
	seed, err := decodeMember("d", d)
	if err != nil {
		return Key{}, err
	}
	return privateKey(seed, public)
}

func decodeMember(name, text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	// as long as a public key
	if err != nil || len(text) != base64.RawURLEncoding.EncodedLen(ed25519.SeedSize) {
		return nil, fmt.Errorf("%w: the %s of a JWK is 43 characters of unpadded base64url", ErrFormat, name)
	}
	return b, nil
}

func encodePrivateJWK(key events.SigningKey) ([]byte, error) {
	return encodeLine(struct {
		JSONWebKey
		D string `json:"d"`
	}{NewJSONWebKey(key.Public()), base64.RawURLEncoding.EncodeToString(key.Private().Seed())})
}

func encodeLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode the JWK: %w", err)
	}
	return append(b, '\n'), nil
}
