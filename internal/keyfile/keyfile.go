// Package keyfile keeps private keys in files: PKCS #8 in PEM, of mode 0600, written so that a crash leaves either the
// old file or the new one. Its errors name the file and what to do, and never what is in it.
package keyfile

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	groupRest  = 0o077
)

// Read returns the private key in a file.
func Read(path string) (events.SigningKey, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return events.SigningKey{}, fmt.Errorf("%s: %w", path, ErrMissing)
	}
	if err != nil {
		return events.SigningKey{}, fmt.Errorf("read the key file: %w", err)
	}
	if info.IsDir() {
		return events.SigningKey{}, fmt.Errorf("%s: %w, but a folder", path, ErrFormat)
	}
	if err := CheckMode(path, info); err != nil {
		return events.SigningKey{}, err
	}
	content, err := os.ReadFile(path)
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

// CheckMode returns [ErrOpen] if others may read the file of a private key.
func CheckMode(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&groupRest != 0 {
		return fmt.Errorf("%s: %w (mode %04o): chmod 600 %s", path, ErrOpen, info.Mode().Perm(), path)
	}
	return nil
}

// Create writes a key, in PKCS #8 PEM, to a file that must not exist yet.
func Create(path string, key events.SigningKey) error {
	if err := absent(path); err != nil {
		return err
	}
	return Replace(path, key)
}

// Replace writes a key, in PKCS #8 PEM, to a file, in place of what is there.
func Replace(path string, key events.SigningKey) error {
	content, err := keyformat.EncodePrivate(key, keyformat.PEM)
	if err != nil {
		return err
	}
	return WriteFile(path, content)
}

// CreateFile writes a file of mode 0600 that must not exist yet, or returns [ErrExists].
func CreateFile(path string, content []byte) error {
	if err := absent(path); err != nil {
		return err
	}
	return WriteFile(path, content)
}

func absent(path string) error {
	if path == "-" { // which is the standard output elsewhere
		return errors.New("a private key is never printed: name a file, and not -")
	}
	info, err := os.Lstat(path)
	if err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder: name a file in it", path)
	}
	if err == nil {
		return fmt.Errorf("%s: %w: name another file", path, ErrExists)
	}
	return nil
}

// WriteFile writes a file of mode 0600 that is there whole, and on the disk, or not at all. A crash may leave PATH.new,
// which the next one takes away.
func WriteFile(path string, content []byte) (err error) {
	temporary := path + ".new"
	_ = os.Remove(temporary) // where it can't be, O_EXCL says why
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, keyMode)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: there is no folder %s", path, filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temporary)
			err = fmt.Errorf("write %s: %w", path, cause(err))
		}
	}()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(keyMode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return Rename(temporary, path)
}

// cause is an error of the system without the file's name, which for PATH.new is not the one that the reader knows.
func cause(err error) error {
	if of := (*fs.PathError)(nil); errors.As(err, &of) {
		return of.Err
	}
	return err
}

// Rename moves a file in place of another, on the disk too when it returns.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(to))
}

// Remove deletes a file, on the disk too when it returns. One that is not there is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// MakeFolder makes a folder that only its owner may enter, and those above it, on the disk too when it returns. One that is
// there stays as it is.
func MakeFolder(path string) error {
	var changed []string // folders that get a new one
	for missing := filepath.Clean(path); ; missing = filepath.Dir(missing) {
		if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		changed = append(changed, filepath.Dir(missing))
	}
	if err := os.MkdirAll(path, folderMode); err != nil {
		return err
	}
	for _, folder := range changed {
		if err := syncFolder(folder); err != nil {
			return err
		}
	}
	return nil
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
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
