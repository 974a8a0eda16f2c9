// Package keyfile keeps private keys in files: PKCS #8 in PEM, of mode 0600, written so that a crash leaves either the
// old file or the new one. Its errors name the file and what to do, and never what is in it.
package keyfile

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyformat"
)

// Errors of key files. Each comes with one line that says which file it is and how to mend it.
var (
	ErrMissing = errors.New("the key file does not exist")
	ErrOpen    = errors.New("the key file can be read by others")
	ErrFormat  = errors.New("the file is not an Ed25519 private key in PKCS #8 PEM")
	ErrExists  = errors.New("the key file exists already")
)

const (
	pemType    = "PRIVATE KEY"
	keyMode    = 0o600
	folderMode = 0o700
)

// Read returns the private key in a file.
func Read(path string) (events.SigningKey, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return events.SigningKey{}, fmt.Errorf("%s: %w", path, ErrMissing)
	}
	if err != nil {
		return events.SigningKey{}, unreadable(path, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return events.SigningKey{}, fmt.Errorf("read the key file: %w", err)
	}
	if info.IsDir() {
		return events.SigningKey{}, fmt.Errorf("%s: %w, but a folder", path, ErrFormat)
	}
	if err := CheckMode(path, info); err != nil {
		return events.SigningKey{}, err
	}
	content, err := io.ReadAll(io.LimitReader(f, keyformat.MaxSize+1))
	if err != nil {
		return events.SigningKey{}, fmt.Errorf("read the key file: %w", err)
	}
	private, ok := parse(content)
	if !ok {
		return events.SigningKey{}, fmt.Errorf("%s: %w: if it is a key in another form, `omi keygen --from %s --out FILE` converts it", path, ErrFormat, path)
	}
	return events.NewSigningKey(private), nil
}

// parse reads PKCS #8 PEM. Why it can't is not said: the parser's own words could quote the file.
func parse(content []byte) (ed25519.PrivateKey, bool) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != pemType {
		return nil, false
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := parsed.(ed25519.PrivateKey)
	return private, err == nil && ok
}

// ReadPublicKeys returns the public keys in a text file: one a line, `#` begins a comment.
func ReadPublicKeys(path string) ([]events.PublicKey, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read public keys: %w", err)
	}
	var keys []events.PublicKey
	n := 0
	for line := range strings.Lines(string(content)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, err := events.ParsePublicKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}
