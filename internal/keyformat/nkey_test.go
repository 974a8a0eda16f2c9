package keyformat_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/nats-io/nkeys"

	"omiappreg.org/keyrotation/internal/keyformat"
)

// TestNKeys: keys that NATS's own library makes are read, but only users' keys.
func TestNKeys(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		create func() (nkeys.KeyPair, error)
		want   error
	}{"user": {nkeys.CreateUser, nil}, "account": {nkeys.CreateAccount, keyformat.ErrAlgorithm}, "operator": {nkeys.CreateOperator, keyformat.ErrAlgorithm}} {
		pair, err := c.create()
		if err != nil {
			t.Fatal(err)
		}
		seed, err := pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		key, err := keyformat.Parse(seed)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if c.want != nil {
			continue
		}
		public, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		if text, err := keyformat.EncodePublic(key.Public, keyformat.NKey); err != nil || string(text) != public+"\n" {
			t.Errorf("%s: got %s, %v, want %s", name, text, err, public)
		}
		for i := range seed { // its checksum
			broken := bytes.Clone(seed)
			broken[i] ^= 1
			if _, err := keyformat.Parse(broken); err == nil {
				t.Errorf("with another character at %d it is read", i)
			}
		}
	}
}
