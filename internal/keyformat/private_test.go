package keyformat_test

import (
	"crypto/ed25519"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyformat"
)

// TestLooksPrivate: a private key is recognised in each form, whole, in part and among other words,
// and no other text is taken for one.
func TestLooksPrivate(t *testing.T) {
	t.Parallel()
	private := func(form keyformat.Format) string { return string(must(keyformat.EncodePrivate(testKey(), form))) }
	pem, ssh, seed := private(keyformat.PEM), private(keyformat.OpenSSH), strings.TrimSpace(private(keyformat.NKey))
	for name, text := range map[string]string{
		"PKCS #8":              pem,
		"its body":             strings.Split(pem, "\n")[1],
		"its header":           "--key=-----BEGIN PRIVATE KEY-----",
		"another's header":     "-----BEGIN RSA PRIVATE KEY-----",
		"quoted":               strconv.Quote(pem),
		"version 2":            "MFECAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC",
		"OpenSSH":              ssh,
		"its first line":       strings.Split(ssh, "\n")[1],
		"JWK":                  private(keyformat.JWK),
		"quoted JWK":           strconv.Quote(private(keyformat.JWK)),
		"a JWK cut off":        private(keyformat.JWK)[:180],
		"a JWK with blanks":    `{ "d" : "nWGx`,
		"a JWK that hides d":   strings.Replace(private(keyformat.JWK), `"d"`, `"\u0064"`, 1),
		"seed":                 seed,
		"a seed in an option":  "--nats-nkey=" + seed,
		"a seed cut off":       seed[:55],
		"a seed among words":   "stat " + seed + ": no such file or directory",
		"a broken seed":        strings.Replace(seed, seed[20:24], "AAAA", 1),
		"an account's seed":    "SA" + seed[2:],
		"NATS credentials":     "------BEGIN USER NKEY SEED------\n" + seed,
		"a seed behind a line": "\n" + seed,
	} {
		if !keyformat.LooksPrivate(text) {
			t.Errorf("%s passes", name)
		}
	}
	for _, text := range []string{
		"", "registry.pem", "/var/lib/cms/keys/", "my private key.pem", "org.example.shop", "nats://user:password@host:4222", "5m0s",
		`{"key":"d"}`, `{"id":"x"}`, "S" + strings.Repeat("A", 40), strings.Repeat("s", 80), testKey().Sign(nil).String(),
	} {
		if keyformat.LooksPrivate(text) {
			t.Errorf("%q does not", text)
		}
	}
}

// FuzzLooksPrivate: a private key is recognised whatever is around it, and no public key is taken
// for one.
func FuzzLooksPrivate(f *testing.F) {
	f.Add([]byte("seed"), "stat ", ": no such file")
	f.Add([]byte{}, "--key=", "\n")
	f.Add([]byte{255}, "", "")
	f.Fuzz(func(t *testing.T, seed []byte, before, after string) {
		whole := make([]byte, ed25519.SeedSize)
		copy(whole, seed)
		key := events.NewSigningKey(ed25519.NewKeyFromSeed(whole))
		for _, form := range privateForms {
			text := string(must(keyformat.EncodePrivate(key, form)))
			for _, shown := range []string{text, strings.TrimSpace(text), strconv.Quote(text), strings.ReplaceAll(text, "\n", " ")} {
				if got := fmt.Sprintf("%s %s %s", before, shown, after); !keyformat.LooksPrivate(got) || !keyformat.LooksPrivate(shown) {
					t.Errorf("%s passes: %q", form, got)
				}
			}
		}
		for _, form := range publicForms {
			if text := string(must(keyformat.EncodePublic(key.Public(), form))); keyformat.LooksPrivate(text) {
				t.Errorf("a public key does not, as %s: %q", form, text)
			}
		}
	})
}
