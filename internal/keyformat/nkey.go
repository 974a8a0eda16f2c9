package keyformat

import (
	"bytes"
	"fmt"

	"github.com/nats-io/nkeys"

	"omiappreg.org/keyrotation/events"
)

// parseNKey reads the nkey of a NATS user: a seed, SU…, or a public key, U…. It refuses those of
// servers, accounts and operators, which no client connects with.
func parseNKey(text []byte) (Key, error) {
	if bytes.ContainsAny(text, " \t\r\n") {
		return Key{}, ErrMore
	}
	var key Key
	var again []byte
	if text[0] == 'S' {
		kind, seed, err := nkeys.DecodeSeed(text)
		switch {
		case err != nil:
			return Key{}, ErrFormat
		case kind != nkeys.PrefixByteUser:
			return Key{}, ErrAlgorithm
		}
		if key, err = privateKey(seed, nil); err != nil {
			return Key{}, err
		}
		again, err = encodeSeed(key.Private)
		if err != nil {
			return Key{}, err
		}
	} else {
		raw, err := nkeys.Decode(nkeys.PrefixByteUser, text)
		if err != nil {
			return Key{}, ErrFormat
		}
		if key, err = publicKey(raw); err != nil {
			return Key{}, err
		}
		if again, err = encodeNKey(key.Public); err != nil {
			return Key{}, err
		}
	}
	if !bytes.Equal(text, bytes.TrimSpace(again)) {
		return Key{}, ErrFormat // one key has one text
	}
	return key, nil
}

// looksLikeNKey reports whether a text may be a seed or a public key of NATS: upper case base32 and
// nothing more.
func looksLikeNKey(text []byte) bool {
	const shortest = 56
	if len(text) < shortest || text[0] != 'S' && text[0] != 'U' {
		return false
	}
	for _, c := range text[:shortest] {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

func encodeNKey(key events.PublicKey) ([]byte, error) {
	text, err := nkeys.Encode(nkeys.PrefixByteUser, key.Bytes())
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	return append(text, '\n'), nil
}

func encodeSeed(key events.SigningKey) ([]byte, error) {
	text, err := nkeys.EncodeSeed(nkeys.PrefixByteUser, key.Private().Seed())
	if err != nil {
		return nil, fmt.Errorf("encode the private key: %w", err)
	}
	return append(text, '\n'), nil
}
