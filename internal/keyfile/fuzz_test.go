package keyfile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/keyformat"
)

// FuzzRead: no file makes it panic, no error says more than the file's name, and a key that was
// read can be written and read again.
func FuzzRead(f *testing.F) {
	const secret = "SECRETSECRETSECRETSECRET"
	private, err := keyformat.EncodePrivate(events.GenerateSigningKey(), keyformat.PEM)
	if err != nil {
		f.Fatal(err)
	}
	public := events.GenerateSigningKey().Public().String()
	for _, content := range []string{
		"", secret, string(private), "\n" + string(private) + secret, strings.ToLower(string(private)), public, "# a\n\n" + public + " # b\r\n" + public,
		"-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n",
	} {
		f.Add([]byte(content))
	}
	path := filepath.Join(f.TempDir(), "key.pem")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		checkPublicKeys(t, path)
		got, err := keyfile.Read(path)
		if err != nil {
			if want := path + ": " + keyfile.ErrFormat.Error(); !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%v", err)
			}
			return
		}
		if err := keyfile.Replace(path, path, got); err != nil {
			t.Fatal(err)
		}
		if again, err := keyfile.Read(path); err != nil || again.Public() != got.Public() {
			t.Errorf("written, it is %v, %v", again, err)
		}
	})
}

// checkPublicKeys reads a file as a list of public keys.
func checkPublicKeys(t *testing.T, path string) {
	t.Helper()
	keys, err := keyfile.ReadPublicKeys(path)
	if err != nil {
		if !strings.HasPrefix(err.Error(), path+", line ") || !strings.HasSuffix(err.Error(), events.ErrPublicKey.Error()) {
			t.Errorf("%v", err)
		}
		return
	}
	var list strings.Builder
	for _, key := range keys {
		list.WriteString(key.String() + "\n")
	}
	if err := os.WriteFile(path+".list", []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := keyfile.ReadPublicKeys(path + ".list")
	if err != nil || len(again) != len(keys) {
		t.Errorf("%d keys, and written %d: %v", len(keys), len(again), err)
	}
}
