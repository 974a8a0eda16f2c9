package keyformat

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"omiappreg.org/keyrotation/events"
)

const (
	pemBegin    = "-----BEGIN "
	pkcs8Type   = "PRIVATE KEY"
	spkiType    = "PUBLIC KEY"
	openSSHType = "OPENSSH PRIVATE KEY"
)

// parsePEM reads a text that is exactly one block. pem.Decode alone would skip a broken block, and
// text around a block.
func parsePEM(content []byte) (Key, error) {
	if bytes.Count(content, []byte(pemBegin)) > 1 {
		return Key{}, ErrMore
	}
	block, rest := pem.Decode(content)
	switch {
	case block == nil:
		return Key{}, ErrFormat
	case len(rest) > 0:
		return Key{}, ErrMore
	case block.Headers["Proc-Type"] != "":
		return Key{}, ErrLocked
	case len(block.Headers) > 0:
		return Key{}, ErrMore
	}
	switch block.Type {
	case pkcs8Type:
		return parsePKCS8(block.Bytes)
	case spkiType:
		return parseSPKI(block.Bytes)
	case openSSHType:
		return parseOpenSSH(block)
	case "ENCRYPTED PRIVATE KEY":
		return Key{}, ErrLocked
	case "RSA PRIVATE KEY", "RSA PUBLIC KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY":
		return Key{}, ErrAlgorithm
	default:
		return Key{}, ErrFormat
	}
}

// parsePKCS8 reads RFC 5958 as RFC 8410 §7 uses it. The standard library's parser accepts anything
// after the key, and ignores the public half that version 2 states.
func parsePKCS8(b []byte) (Key, error) {
	var sequence, algorithm, inner, seed, public cryptobyte.String
	var oid asn1.ObjectIdentifier
	var version int
	var hasPublic bool
	input := cryptobyte.String(b)
	if !input.ReadASN1(&sequence, der.SEQUENCE) || !input.Empty() || !sequence.ReadASN1Integer(&version) ||
		!sequence.ReadASN1(&algorithm, der.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) {
		return Key{}, ErrFormat
	}
	if !oid.Equal(asn1.ObjectIdentifier{1, 3, 101, 112}) {
		return Key{}, ErrAlgorithm
	}
	if !algorithm.Empty() || !sequence.ReadASN1(&inner, der.OCTET_STRING) ||
		!inner.ReadASN1(&seed, der.OCTET_STRING) || !inner.Empty() ||
		!sequence.SkipOptionalASN1(der.Tag(0).ContextSpecific().Constructed()) ||
		!sequence.ReadOptionalASN1(&public, &hasPublic, der.Tag(1).ContextSpecific()) || !sequence.Empty() {
		return Key{}, ErrFormat
	}
	if !hasPublic && version == 0 {
		return privateKey(seed, nil)
	}
	// Version 2, whose number is 1, states the public half: a BIT STRING, which begins with the
	// number of its unused bits.
	if unused := uint8(0); version != 1 || !public.ReadUint8(&unused) || unused != 0 {
		return Key{}, ErrFormat
	}
	return privateKey(seed, public)
}

func parseSPKI(b []byte) (Key, error) {
	parsed, err := x509.ParsePKIXPublicKey(b)
	if err != nil {
		return Key{}, ErrFormat // the parser's own words could quote the key
	}
	public, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return Key{}, ErrAlgorithm
	}
	if again, err := x509.MarshalPKIXPublicKey(public); err != nil || !bytes.Equal(again, b) {
		return Key{}, ErrFormat
	}
	return publicKey(public)
}

func encodePKCS8(key events.SigningKey) ([]byte, error) {
	b, err := x509.MarshalPKCS8PrivateKey(key.Private())
	if err != nil {
		return nil, fmt.Errorf("encode the private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pkcs8Type, Bytes: b}), nil
}

func encodeSPKI(key events.PublicKey) ([]byte, error) {
	b, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(key.Bytes()))
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: spkiType, Bytes: b}), nil
}
