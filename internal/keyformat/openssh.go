package keyformat

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"omiappreg.org/keyrotation/events"
)

// openSSHMagic begins the content of OpenSSH's private key files (OpenSSH's PROTOCOL.key).
const openSSHMagic = "openssh-key-v1\x00"

// parseOpenSSH reads a private key file of ssh-keygen. The library looks at the private half only.
// The public half is written in three more places, two of which other programs show: all of them
// must agree.
func parseOpenSSH(block *pem.Block) (Key, error) {
	parsed, err := ssh.ParseRawPrivateKey(pem.EncodeToMemory(block))
	if locked := (*ssh.PassphraseMissingError)(nil); errors.As(err, &locked) {
		return Key{}, ErrLocked
	}
	if err != nil {
		return Key{}, ErrFormat // the parser's own words could quote the key
	}
	private, ok := parsed.(*ed25519.PrivateKey)
	if !ok {
		return Key{}, ErrAlgorithm
	}
	key, err := privateKey(private.Seed(), private.Public().(ed25519.PublicKey))
	if err != nil {
		return Key{}, err
	}
	var file struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public, Private      []byte
		Rest                 []byte `ssh:"rest"`
	}
	var inner struct {
		Check, CheckAgain uint32
		Type              string
		Public, Private   []byte
		Rest              []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(block.Bytes[len(openSSHMagic):], &file) != nil || ssh.Unmarshal(file.Private, &inner) != nil {
		return Key{}, ErrFormat
	}
	public, err := sshPublicKey(key.Public)
	switch {
	case err != nil:
		return Key{}, err
	case len(file.Rest) > 0:
		return Key{}, ErrMore
	case !bytes.Equal(file.Public, public.Marshal()), !bytes.Equal(inner.Public, key.Public.Bytes()):
		return Key{}, ErrMismatch
	}
	return key, nil
}

// parseAuthorizedKey reads a line of authorized_keys, or of a file KEY.pub. It refuses a line with
// options, because they would be lost. The library's own parser skips lines, and accepts more than
// one text for one key.
func parseAuthorizedKey(line []byte) (Key, error) {
	if bytes.ContainsAny(line, "\r\n") {
		return Key{}, ErrMore
	}
	words := bytes.Fields(line)
	if string(words[0]) != ssh.KeyAlgoED25519 {
		return Key{}, ErrAlgorithm
	}
	if len(words) < 2 {
		return Key{}, ErrFormat
	}
	wire, err := base64.StdEncoding.Strict().DecodeString(string(words[1]))
	if err != nil {
		return Key{}, ErrFormat
	}
	parsed, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return Key{}, ErrFormat
	}
	public, ok := parsed.(ssh.CryptoPublicKey)
	if !ok {
		return Key{}, ErrAlgorithm
	}
	b, ok := public.CryptoPublicKey().(ed25519.PublicKey)
	if !ok {
		return Key{}, ErrAlgorithm
	}
	return publicKey(b)
}

func sshPublicKey(key events.PublicKey) (ssh.PublicKey, error) {
	public, err := ssh.NewPublicKey(ed25519.PublicKey(key.Bytes()))
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	return public, nil
}

func encodeAuthorizedKey(key events.PublicKey) ([]byte, error) {
	public, err := sshPublicKey(key)
	if err != nil {
		return nil, err
	}
	return ssh.MarshalAuthorizedKey(public), nil
}

func encodeOpenSSH(key events.SigningKey) ([]byte, error) {
	block, err := ssh.MarshalPrivateKey(key.Private(), "")
	if err != nil {
		return nil, fmt.Errorf("encode the private key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}
