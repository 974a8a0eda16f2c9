// Package keyformat reads and writes Ed25519 keys in the forms that other programs use: the
// protocol's own text, PEM (PKCS #8 and SPKI, RFC 8410), JWK (RFC 8037), OpenSSH and the nkey of a
// NATS user. It does no I/O. It accepts exactly one key and nothing more. Its errors never quote
// what they refuse, because that could be a private key.
package keyformat

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"regexp"

	"omiappreg.org/keyrotation/events"
)

// Format is a form in which a key is written.
type Format string

// The forms. Text has no private half.
const (
	Text    Format = "ed25519" // ed25519:…, docs/protocol.md §2
	PEM     Format = "pem"     // PKCS #8, or SPKI for a public key
	JWK     Format = "jwk"     // RFC 7517 and RFC 8037
	OpenSSH Format = "openssh" // OpenSSH's own PEM, or a line of authorized_keys
	NKey    Format = "nkey"    // the identity of a NATS user: the seed SU…, or U…
)

// Errors of keys that can't be read or written. A weak key is [events.ErrWeakKey].
var (
	ErrFormat = errors.New("not an Ed25519 key in a known form: " +
		"ed25519:… text, PEM (PKCS #8 or SPKI), JWK, OpenSSH or a NATS user's nkey")
	ErrAlgorithm = errors.New("a key of another kind: this must be an Ed25519 key for signatures")
	ErrLocked    = errors.New("the key is locked by a passphrase: unlock a copy of it first, " +
		"with `ssh-keygen -p -f COPY` or `openssl pkey -in FILE -out COPY`")
	ErrMismatch    = errors.New("the public half does not belong to the private half")
	ErrMore        = errors.New("more than one key, or other text with it: give one key alone")
	ErrPublicOnly  = errors.New("the form ed25519:… is for public keys only; a private key is written as pem, jwk, openssh or nkey")
	errUnknownForm = errors.New("unknown form of a key")
)

// MaxSize is more than any key in any form needs, in bytes.
const MaxSize = 16 << 10

// Key is the result of reading: a public key, and its private key if that was present.
type Key struct {
	Public  events.PublicKey
	Private events.SigningKey // its IsZero is true if only the public half was present
}

// Parse reads a key in any of the forms, private or public, and recognises the form itself. White
// space around it does not matter. More than [MaxSize] bytes give [ErrFormat]. If the content looks
// like something else that it knows, the error says so.
func Parse(content []byte) (Key, error) {
	key, err := parse(content)
	if hint := Hint(content); errors.Is(err, ErrFormat) && hint != "" {
		err = fmt.Errorf("%w; %s", err, hint)
	}
	return key, err
}

func parse(content []byte) (Key, error) {
	if len(content) > MaxSize {
		if bytes.Count(content, []byte(pemBegin)) > 1 {
			return Key{}, ErrMore
		}
		return Key{}, ErrFormat
	}
	parse := parseUnknown
	switch content = bytes.TrimSpace(content); {
	case bytes.HasPrefix(content, []byte("ed25519:")):
		parse = parseText
	case bytes.HasPrefix(content, []byte(pemBegin)):
		parse = parsePEM
	case bytes.HasPrefix(content, []byte("{")):
		parse = parseJWK
	case bytes.HasPrefix(content, []byte("ssh-")), bytes.HasPrefix(content, []byte("ecdsa-")),
		bytes.HasPrefix(content, []byte("sk-")):
		parse = parseAuthorizedKey
	case looksLikeNKey(content):
		parse = parseNKey
	}
	key, err := parse(content)
	if err != nil {
		return Key{}, err
	}
	return key, nil
}

// EncodePublic writes a public key and a line break.
func EncodePublic(key events.PublicKey, format Format) ([]byte, error) {
	switch format {
	case Text:
		return []byte(key.String() + "\n"), nil
	case PEM:
		return encodeSPKI(key)
	case JWK:
		return encodeLine(NewJSONWebKey(key))
	case OpenSSH:
		return encodeAuthorizedKey(key)
	case NKey:
		return encodeNKey(key)
	default:
		return nil, errUnknownForm
	}
}

// EncodePrivate writes a private key and a line break. For [Text] it returns [ErrPublicOnly].
func EncodePrivate(key events.SigningKey, format Format) ([]byte, error) {
	switch format {
	case Text:
		return nil, ErrPublicOnly
	case PEM:
		return encodePKCS8(key)
	case JWK:
		return encodePrivateJWK(key)
	case OpenSSH:
		return encodeOpenSSH(key)
	case NKey:
		return encodeSeed(key)
	default:
		return nil, errUnknownForm
	}
}

func parseUnknown([]byte) (Key, error) { return Key{}, ErrFormat }

func parseText(content []byte) (Key, error) {
	if bytes.ContainsAny(content, "\r\n") {
		return Key{}, ErrMore
	}
	key, err := events.ParsePublicKey(string(content))
	if err != nil {
		return Key{}, err
	}
	return publicKey(key.Bytes())
}

// publicKey returns the key with these 32 bytes, if it is fit for use.
func publicKey(b []byte) (Key, error) {
	key, err := events.PublicKeyFromBytes(b)
	if err != nil {
		return Key{}, ErrFormat
	}
	return Key{Public: key}, key.CheckStrength()
}

// privateKey returns the key of a seed. stated is the public half that was written with it, or nil.
func privateKey(seed, stated []byte) (Key, error) {
	if len(seed) != ed25519.SeedSize {
		return Key{}, ErrFormat
	}
	key := events.NewSigningKey(ed25519.NewKeyFromSeed(seed))
	if stated != nil && !bytes.Equal(stated, key.Public().Bytes()) {
		return Key{}, ErrMismatch
	}
	return Key{Public: key.Public(), Private: key}, nil
}

// privateMarks match parts of private keys, even if they are broken or cut: PEM's header, the
// beginning of PKCS #8 for Ed25519 and of OpenSSH's own form in base64, the d of a JWK (in quotes
// that may be quoted again), and a seed of NATS.
var privateMarks = regexp.MustCompile(`PRIVATE KEY|NKEY SEED|M[A-Za-z0-9+/]{2}CAQ[AE]wBQYDK2Vw|b3BlbnNzaC1rZXktdjE|` +
	`["']d\\?["']\s*:|(?:^|[^A-Za-z0-9])S[A-Z2-7]{50}`)

// LooksPrivate reports whether a text for display, such as the name of a file, contains something
// that looks like a private key in one of the forms. A private key as bare base64 or hexadecimal
// can't be distinguished from other text.
func LooksPrivate(text string) bool {
	if privateMarks.MatchString(text) {
		return true
	}
	key, err := Parse([]byte(text))
	return err == nil && !key.Private.IsZero()
}
