package keyformat_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyformat"
)

var (
	publicForms  = []keyformat.Format{keyformat.Text, keyformat.PEM, keyformat.JWK, keyformat.OpenSSH, keyformat.NKey}
	privateForms = []keyformat.Format{keyformat.PEM, keyformat.JWK, keyformat.OpenSSH, keyformat.NKey}
)

// TestEveryPair: a key that goes through any form and then any other is the same key, and a public
// one stays public.
func TestEveryPair(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.SliceOfN(rapid.Byte(), ed25519.SeedSize, ed25519.SeedSize).Draw(t, "seed")
		key := events.NewSigningKey(ed25519.NewKeyFromSeed(seed))
		for _, from := range privateForms {
			for _, to := range privateForms {
				checkPrivate(t, string(from)+" to "+string(to), through(t, through(t, key, from), to), key)
			}
			for _, to := range publicForms {
				public := throughPublic(t, through(t, key, from).Public(), to)
				checkPublic(t, string(from)+" to public "+string(to), public, key.Public())
			}
		}
		for _, from := range publicForms {
			for _, to := range publicForms {
				public := throughPublic(t, throughPublic(t, key.Public(), from).Public, to)
				checkPublic(t, string(from)+" to "+string(to), public, key.Public())
			}
		}
	})
}

// failer is of a test and of a property.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func through(t failer, key events.SigningKey, form keyformat.Format) events.SigningKey {
	t.Helper()
	b, err := keyformat.EncodePrivate(key, form)
	if err != nil {
		t.Fatalf("write as %s: %v", form, err)
	}
	got, err := keyformat.Parse(b)
	if err != nil {
		t.Fatalf("read %s: %v", form, err)
	}
	checkPrivate(t, string(form), got.Private, key)
	if got.Public != key.Public() {
		t.Fatalf("%s: public key %s, want %s", form, got.Public, key.Public())
	}
	return got.Private
}

func throughPublic(t failer, key events.PublicKey, form keyformat.Format) keyformat.Key {
	t.Helper()
	b, err := keyformat.EncodePublic(key, form)
	if err != nil {
		t.Fatalf("write as %s: %v", form, err)
	}
	got, err := keyformat.Parse(b)
	if err != nil {
		t.Fatalf("read %s: %v", form, err)
	}
	return got
}

func checkPrivate(t failer, what string, got, want events.SigningKey) {
	t.Helper()
	if got.IsZero() || !bytes.Equal(got.Private(), want.Private()) {
		t.Fatalf("%s: another private key, or none", what)
	}
}

func checkPublic(t failer, what string, got keyformat.Key, want events.PublicKey) {
	t.Helper()
	if got.Public != want || !got.Private.IsZero() {
		t.Fatalf("%s: %s, want %s and no private key", what, got.Public, want)
	}
}

// TestOtherTools: keys that openssl and ssh-keygen wrote are read, and written exactly as they do
// it. The files in testdata are theirs (OpenSSL 3.0, OpenSSH 9.2):
//
//	openssl genpkey -algorithm ed25519 -out openssl.pem
//	openssl pkey -in openssl.pem -pubout -out openssl-public.pem
//	ssh-keygen -t ed25519 -N "" -C "" -f ssh
func TestOtherTools(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file, public, text string
		form               keyformat.Format
	}{
		{"openssl.pem", "openssl-public.pem", "ed25519:SqMwWBwhAbPTR-QIKOZ0bPVOS3sx9ChZNDRFWyoxmkw", keyformat.PEM},
		{"ssh", "ssh-public", "ed25519:Li7Wpg02PHBgtEWnMMrJS1Bn1en_ppfnYxx__AGWEdE", keyformat.OpenSSH},
	} {
		private, err := keyformat.Parse(fixture(t, c.file))
		if err != nil || private.Private.IsZero() || private.Public.String() != c.text {
			t.Errorf("%s: %s, %v, want the private key of %s", c.file, private.Public, err, c.text)
			continue
		}
		public, err := keyformat.Parse(fixture(t, c.public))
		if err != nil || !public.Private.IsZero() || public.Public != private.Public {
			t.Errorf("%s: %s, %v, want only the public key %s", c.public, public.Public, err, c.text)
		}
		want := strings.ReplaceAll(string(fixture(t, c.public)), " \n", "\n") // ssh-keygen leaves room for the comment
		if b := must(keyformat.EncodePublic(public.Public, c.form)); string(b) != want {
			t.Errorf("%s is written as %s", c.public, b)
		}
		b := must(keyformat.EncodePrivate(private.Private, c.form))
		if !bytes.Equal(blockOf(t, b), blockOf(t, fixture(t, c.file))) {
			t.Errorf("%s is written in another way", c.file)
		}
	}
}

// blockOf returns the content of a PEM block, and the block's type. OpenSSH's has 8 random bytes,
// which are zeroed.
func blockOf(t *testing.T, content []byte) []byte {
	t.Helper()
	block, rest := pem.Decode(content)
	if block == nil || len(rest) > 0 {
		t.Fatal("not one PEM block")
	}
	if strings.HasPrefix(block.Type, "OPENSSH") {
		const public = 4 + len("ssh-ed25519") + 4 + 32
		const checks = len("openssh-key-v1\x00") + 4 + len("none") + 4 + len("none") + 4 + 4 + 4 + public + 4
		clear(block.Bytes[checks : checks+8])
	}
	return append([]byte(block.Type), block.Bytes...)
}

// TestStandards: the keys of RFC 8037, appendix A, and of RFC 8410, section 10.
func TestStandards(t *testing.T) {
	t.Parallel()
	const (
		x        = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
		withoutD = `{"kty":"OKP","crv":"Ed25519","x":"` + x + `"}`
		withD    = `{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"` + x + `"}`
		curdle   = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"
	)
	for name, c := range map[string]struct {
		content, text string
		private       bool
	}{
		"RFC 8037 A.1": {withD, "ed25519:" + x, true},
		"RFC 8037 A.2": {withoutD, "ed25519:" + x, false},
		"RFC 8410 10.1": {"-----BEGIN PUBLIC KEY-----\n" +
			"MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n", curdle, false},
		"RFC 8410 10.3": {"-----BEGIN PRIVATE KEY-----\n" +
			"MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n", curdle, true},
		"RFC 8410 10.3, with attributes and the public key": {"-----BEGIN PRIVATE KEY-----\n" +
			"MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n" +
			"oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB\n" +
			"Z9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PRIVATE KEY-----\n", curdle, true},
		"a JWK of Web Crypto": {`{"key_ops":["verify"],"ext":true,"alg":"Ed25519","use":"sig",` + withoutD[1:], "ed25519:" + x, false},
		"lines of DOS":        {"\r\n" + strings.ReplaceAll(string(fixture(t, "openssl.pem")), "\n", "\r\n"), "ed25519:SqMwWBwhAbPTR-QIKOZ0bPVOS3sx9ChZNDRFWyoxmkw", true},
		"a comment":           {strings.TrimSpace(string(fixture(t, "ssh-public"))) + "\tsomeone@example.org at home\n", "ed25519:Li7Wpg02PHBgtEWnMMrJS1Bn1en_ppfnYxx__AGWEdE", false},
	} {
		got, err := keyformat.Parse([]byte(c.content))
		if err != nil || got.Public.String() != c.text || got.Private.IsZero() == c.private {
			t.Errorf("%s: %s, private: %t, %v", name, got.Public, !got.Private.IsZero(), err)
		}
	}
	key, err := keyformat.Parse([]byte(withD))
	if err != nil {
		t.Fatal(err)
	}
	if got := keyformat.Thumbprint(key.Public); got != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" { // RFC 8037 A.3
		t.Errorf("thumbprint %s", got)
	}
	want := `{"kty":"OKP","crv":"Ed25519","x":"` + x + `","kid":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",` +
		`"use":"sig"}` + "\n"
	if got := must(keyformat.EncodePublic(key.Public, keyformat.JWK)); string(got) != want {
		t.Errorf("the public JWK is %s", got)
	}
	want = strings.Replace(want, "}", `,"d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}`, 1)
	if got := must(keyformat.EncodePrivate(key.Private, keyformat.JWK)); string(got) != want {
		t.Error("the private JWK is another")
	}
}

// FuzzParse: no text makes the parser panic, no error quotes what it refuses, and a key that is
// read is the same key in every other form.
func FuzzParse(f *testing.F) {
	for _, c := range refused(f) {
		f.Add([]byte(c.content))
	}
	files, err := filepath.Glob(filepath.Join("testdata", "*s*"))
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			f.Add(fixture(f, filepath.Base(file)))
		}
	}
	key := testKey()
	for _, form := range privateForms {
		f.Add(must(keyformat.EncodePrivate(key, form)))
	}
	for _, form := range publicForms {
		f.Add(must(keyformat.EncodePublic(key.Public(), form)))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		before := bytes.Clone(content)
		got, err := keyformat.Parse(content)
		if !bytes.Equal(before, content) {
			t.Fatal("Parse changed what it was given")
		}
		if err != nil {
			checkSilent(t, "refused", err, content)
			if !got.Public.IsZero() || !got.Private.IsZero() {
				t.Error("an error, and a key")
			}
			return
		}
		if err := got.Public.CheckStrength(); err != nil {
			t.Errorf("read a key that is weak: %v", err)
		}
		for _, form := range publicForms {
			checkPublic(t, string(form), throughPublic(t, got.Public, form), got.Public)
		}
		if got.Private.IsZero() {
			return
		}
		for _, form := range privateForms {
			through(t, got.Private, form)
		}
		checkOtherParser(t, content, got.Private)
	})
}

// checkOtherParser reads a private key in PEM with other parsers: they accept what we accept, as
// the same key.
func checkOtherParser(t *testing.T, content []byte, got events.SigningKey) {
	t.Helper()
	block, _ := pem.Decode(bytes.TrimSpace(content))
	if block == nil {
		return
	}
	theirs, err := ssh.ParseRawPrivateKey(content)
	if block.Type == "PRIVATE KEY" {
		theirs, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if pointer, ok := theirs.(*ed25519.PrivateKey); ok {
		theirs = *pointer
	}
	if private, ok := theirs.(ed25519.PrivateKey); !ok || !private.Equal(got.Private()) {
		t.Errorf("another parser reads a %T: %v", theirs, err)
	}
}

// checkSilent fails if an error contains anything of the refused key.
func checkSilent(t *testing.T, what string, err error, content []byte) {
	t.Helper()
	for _, word := range regexp.MustCompile(`[A-Za-z0-9+/_=-]{8,}`).FindAllString(err.Error(), -1) {
		if bytes.Contains(content, []byte(word)) && !strings.Contains(keyformat.ErrFormat.Error()+keyformat.ErrLocked.Error(), word) {
			t.Errorf("%s: the error quotes the key: %v", what, err)
		}
	}
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func testKey() events.SigningKey {
	return events.NewSigningKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
