// Package keyfile keeps private keys in files: PKCS #8 in PEM, with mode 0600, written so that a
// crash leaves either the old file or the new one. Its errors name the file and the remedy, and
// never quote the content.
package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyformat"
)

// Errors of key files. Each comes with one line that names the file and the remedy.
var (
	ErrMissing = errors.New("the key file does not exist")
	ErrOpen    = errors.New("the key file can be read by others")
	ErrFormat  = errors.New("the file is not an Ed25519 private key in PKCS #8 PEM")
	ErrExists  = errors.New("the key file exists already")
)

const (
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
	key, err := keyformat.ParsePrivate(content)
	switch {
	case err == nil:
		return key, nil
	case errors.Is(err, keyformat.ErrOtherForm), errors.Is(err, keyformat.ErrFormat):
		return events.SigningKey{}, fmt.Errorf("%s: %w: if it is a key in another form, `omi keygen --from %s --out FILE` converts it", path, ErrFormat, path)
	case errors.Is(err, keyformat.ErrMore):
		return events.SigningKey{}, fmt.Errorf("%s: %w alone: there is more in it, which another key in its place would delete: "+
			"move what is not the key to a file of its own", path, ErrFormat)
	default:
		return events.SigningKey{}, fmt.Errorf("%s: %w: %w", path, ErrFormat, err)
	}
}

// ReadPublicKeys returns the public keys in a text file: one per line, `#` begins a comment.
func ReadPublicKeys(path string) ([]events.PublicKey, error) {
	return readLines(path, events.ParsePublicKey)
}

// ReadTrustedKeys is ReadPublicKeys for keys that may have an end: ed25519:…@TIME.
func ReadTrustedKeys(path string) ([]events.TrustedKey, error) {
	return readLines(path, events.ParseTrustedKey)
}

func readLines[T any](path string, parse func(string) (T, error)) ([]T, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read public keys: %w", err)
	}
	var keys []T
	n := 0
	for line := range strings.Lines(string(content)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}
