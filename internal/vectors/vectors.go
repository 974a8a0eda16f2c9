// Package vectors reads the test vectors in testdata/vectors: messages with the answer that the
// contract gives to each. It is for tests only.
//
// A vector that no test reads is worse than none. So a file of an unknown kind, a case without an
// expectation and a file without cases are errors. Fields that the types lack are ignored: they are
// remarks for people.
package vectors

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Load reads every file of the folder. It ends the test if one of them can't be read, or one of the
// kinds is missing.
func Load(t testing.TB) Set {
	t.Helper()
	dir, err := Dir()
	if err != nil {
		t.Fatal(err)
	}
	set, err := Read(os.DirFS(dir))
	if err != nil {
		t.Fatalf("test vectors in %s: %v", dir, err)
	}
	return set
}

// Dir returns the folder of the vectors, starting from the working directory: a test's is the
// folder of its package.
func Dir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "testdata", "vectors"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = parent
	}
}

// Read reads every file of a folder.
func Read(folder fs.FS) (Set, error) {
	entries, err := fs.ReadDir(folder, ".")
	if err != nil {
		return Set{}, err
	}
	var set Set
	for _, entry := range entries {
		b, err := fs.ReadFile(folder, entry.Name())
		if err == nil {
			err = set.add(entry.Name(), b)
		}
		if err != nil {
			return Set{}, fmt.Errorf("%s: %w", entry.Name(), err)
		}
	}
	if len(set.Canonical) == 0 || len(set.Keys) == 0 || len(set.Events) == 0 || len(set.Requests) == 0 {
		return Set{}, errors.New("one of the four kinds of files is missing")
	}
	return set, nil
}

// add sorts a file by its content, because names are for people.
func (s *Set) add(name string, b []byte) error {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(b, &members); err != nil {
		return err
	}
	has := func(name string) bool { _, ok := members[name]; return ok }
	switch {
	case has("state"):
		f, err := decode[RequestFile](b)
		f.File = name
		s.Requests = append(s.Requests, f)
		return errors.Join(err, f.check())
	case has("cases"):
		f, err := decode[CanonicalFile](b)
		f.File = name
		s.Canonical = append(s.Canonical, f)
		return errors.Join(err, f.check())
	case has("keys"):
		f, err := decode[KeyFile](b)
		f.File = name
		s.Keys = append(s.Keys, f)
		return errors.Join(err, f.check())
	case has("events"):
		f, err := decode[EventFile](b)
		f.File = name
		s.Events = append(s.Events, f)
		return errors.Join(err, f.check())
	default:
		return errors.New("a file of a kind that no test reads")
	}
}

func decode[T any](b []byte) (T, error) {
	var f T
	err := json.Unmarshal(b, &f)
	return f, err
}

func (f *RequestFile) check() error {
	var names names
	for i := range f.Cases {
		c := &f.Cases[i]
		if c.ProcessedAt == 0 {
			c.ProcessedAt = c.StoredAt
		}
		if c.Subject == "" || c.StoredAt == 0 || c.Expect == "" {
			names.fail(c.Name, "subject, stored_at or expect is missing")
		}
		names.add(c.Name, c.check())
	}
	return names.end()
}

func (f *EventFile) check() error {
	var names names
	if f.Origin == "" || len(f.TrustedRegistryKeys) == 0 {
		names.fail(f.File, "origin or trusted_registry_keys is missing")
	}
	for _, c := range f.Events {
		if c.Subject == "" || (c.Expect != Applied && c.Expect != Rejected) {
			names.fail(c.Name, "the subject is missing, or expect is neither applied nor rejected")
		}
		names.add(c.Name, c.check())
	}
	return names.end()
}

func (f *CanonicalFile) check() error {
	var names names
	for _, c := range f.Cases {
		if c.Input == "" || c.Canonical == "" || c.SHA256 == "" {
			names.fail(c.Name, "input, canonical or sha256 is missing")
		}
		names.add(c.Name, nil)
	}
	return names.end()
}

func (f *KeyFile) check() error {
	var names names
	for name, key := range f.Keys {
		seed, err := hex.DecodeString(key.Seed)
		if err == nil && len(seed) != ed25519.SeedSize {
			err = errors.New("a seed has 32 bytes")
		}
		if key.PublicKey == "" {
			names.fail(name, "public_key is missing")
		}
		names.add(name, err)
	}
	return names.end()
}

func (p Payload) check() error {
	if (p.Text == nil) == (p.Base64 == nil) {
		return errors.New("one of message and message_base64 must be there")
	}
	if p.Text != nil {
		return nil
	}
	_, err := base64.StdEncoding.DecodeString(*p.Base64)
	return err
}

// names are the names of the cases of one file: each case has a name of its own, and there is at
// least one.
type names struct {
	seen map[string]bool
	err  error
}

func (n *names) add(name string, err error) {
	if n.seen == nil {
		n.seen = map[string]bool{}
	}
	if name == "" || n.seen[name] {
		n.fail(name, "a case's name is missing, or used twice")
	}
	n.seen[name] = true
	if err != nil {
		n.fail(name, err.Error())
	}
}

func (n *names) fail(name, what string) {
	n.err = errors.Join(n.err, fmt.Errorf("case %q: %s", name, what))
}

func (n *names) end() error {
	if len(n.seen) == 0 {
		return errors.Join(n.err, errors.New("there are no cases"))
	}
	return n.err
}
