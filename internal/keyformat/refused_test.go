package keyformat_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyformat"
)

type refusal struct {
	content string
	want    error
}

// TestRefused: anything that is not one sound Ed25519 key is refused with the reason, and without a
// word of its content.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, c := range refused(t) {
		got, err := keyformat.Parse([]byte(c.content))
		if !errors.Is(err, c.want) || !got.Public.IsZero() || !got.Private.IsZero() {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err != nil {
			checkSilent(t, name, err, []byte(c.content))
		}
	}
	if _, err := keyformat.EncodePrivate(testKey(), keyformat.Text); !errors.Is(err, keyformat.ErrPublicOnly) {
		t.Errorf("a private key was written as text: %v", err)
	}
	if _, err := keyformat.EncodePublic(testKey().Public(), "der"); err == nil {
		t.Error("a form that is none")
	}
}

func refused(t testing.TB) map[string]refusal {
	t.Helper()
	all := map[string]refusal{}
	for _, cases := range []map[string]refusal{refusedText(t), refusedPEM(t), refusedJWK(), refusedOpenSSH(t)} {
		maps.Copy(all, cases)
	}
	return all
}

func refusedText(t testing.TB) map[string]refusal {
	text := testKey().Public().String()
	ssh := strings.TrimSpace(string(fixture(t, "ssh-public")))
	name, blob, _ := strings.Cut(ssh, " ")
	ecdsaName, ecdsaBlob, _ := strings.Cut(strings.TrimSpace(string(fixture(t, "ssh-ecdsa-public"))), " ")
	return map[string]refusal{
		"nothing":                {"", keyformat.ErrFormat},
		"white space":            {" \n\t", keyformat.ErrFormat},
		"prose":                  {"What is a key? SECRETSECRETSECRET", keyformat.ErrFormat},
		"too much":               {text + strings.Repeat(" ", keyformat.MaxSize), keyformat.ErrFormat},
		"32 bytes":               {string(testKey().Public().Bytes()), keyformat.ErrFormat},
		"a private key as text":  {"ed25519:" + base64url(testKey().Private()), events.ErrPublicKey},
		"short text":             {text[:50], events.ErrPublicKey},
		"two texts":              {text + "\n" + text + "\n", keyformat.ErrMore},
		"text, then prose":       {text + " mine", events.ErrPublicKey},
		"weak text":              {"ed25519:" + base64url(identity()), events.ErrWeakKey},
		"two lines":              {ssh + "\n" + ssh, keyformat.ErrMore},
		"a line of nothing":      {name, keyformat.ErrFormat},
		"a line with options":    {"restrict " + ssh, keyformat.ErrFormat},
		"a line of another name": {"ssh-rsa " + blob, keyformat.ErrAlgorithm},
		"a line of another key":  {name + " " + ecdsaBlob, keyformat.ErrAlgorithm},
		"ECDSA":                  {ecdsaName + " " + ecdsaBlob, keyformat.ErrAlgorithm},
		"a security key":         {"sk-ssh-ed25519@openssh.com " + blob, keyformat.ErrAlgorithm},
		"a line cut off":         {name + " " + blob[:40], keyformat.ErrFormat},
		"another text of it":     {name + " " + blob + "====", keyformat.ErrFormat},
		"a weak line":            {name + " AAAAC3NzaC1lZDI1NTE5AAAAIAEA" + strings.Repeat("A", 40), events.ErrWeakKey},
	}
}

func refusedPEM(t testing.TB) map[string]refusal {
	private, public := string(fixture(t, "openssl.pem")), string(fixture(t, "openssl-public.pem"))
	pkcs8, _ := pem.Decode([]byte(private))
	spki, _ := pem.Decode([]byte(public))
	version2 := slices.Concat([]byte{0x30, 0x51, 2, 1, 1}, pkcs8.Bytes[5:], []byte{0x81, 0x21, 0})
	weak := slices.Concat(spki.Bytes[:12], identity())
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	xKey := must(ecdh.X25519().GenerateKey(rand.Reader))
	der := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return map[string]refusal{
		"two blocks":                {private + public, keyformat.ErrMore},
		"a block, then prose":       {private + "and more", keyformat.ErrMore},
		"prose, then a block":       {"My key:\n" + private, keyformat.ErrFormat},
		"a broken block, then one":  {"-----BEGIN PRIVATE KEY-----\n" + private, keyformat.ErrMore},
		"a block cut off":           {private[:60], keyformat.ErrFormat},
		"a block of garbage":        {"-----BEGIN PRIVATE KEY-----\nSECRETSECRETSECRETSECRET\n-----END PRIVATE KEY-----\n", keyformat.ErrFormat},
		"a block that is no base64": {"-----BEGIN PRIVATE KEY-----\n!!!SECRET!!!\n-----END PRIVATE KEY-----\n", keyformat.ErrFormat},
		"a header":                  {strings.Replace(private, "-----\n", "-----\nSecret: SECRETSECRET\n\n", 1), keyformat.ErrMore},
		"an old locked block":       {strings.Replace(private, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1), keyformat.ErrLocked},
		"locked PKCS #8":            {string(fixture(t, "openssl-locked.pem")), keyformat.ErrLocked},
		"a certificate":             {der("CERTIFICATE", pkcs8.Bytes), keyformat.ErrFormat},
		"PKCS #8 and more":          {der("PRIVATE KEY", slices.Concat(pkcs8.Bytes, []byte{0})), keyformat.ErrFormat},
		"PKCS #8, more in it":       {der("PRIVATE KEY", longer(pkcs8.Bytes)), keyformat.ErrFormat},
		"PKCS #8, public":           {der("PRIVATE KEY", spki.Bytes), keyformat.ErrFormat},
		"SPKI, private":             {der("PUBLIC KEY", pkcs8.Bytes), keyformat.ErrFormat},
		"SPKI and more":             {der("PUBLIC KEY", slices.Concat(spki.Bytes, []byte{0})), keyformat.ErrFormat},
		"SPKI, more in it":          {der("PUBLIC KEY", withNull(spki.Bytes)), keyformat.ErrFormat},
		"weak SPKI":                 {der("PUBLIC KEY", weak), events.ErrWeakKey},
		"another public half":       {der("PRIVATE KEY", slices.Concat(version2, testKey().Public().Bytes())), keyformat.ErrMismatch},
		"version 1, public half":    {der("PRIVATE KEY", version1(version2, spki.Bytes[12:])), keyformat.ErrFormat},
		"RSA, PKCS #8":              {der("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(rsaKey))), keyformat.ErrAlgorithm},
		"RSA, PKCS #1":              {der("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), keyformat.ErrAlgorithm},
		"RSA, SPKI":                 {der("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(rsaKey.Public()))), keyformat.ErrAlgorithm},
		"P-256, PKCS #8":            {der("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ecKey))), keyformat.ErrAlgorithm},
		"P-256, SEC 1":              {der("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey))), keyformat.ErrAlgorithm},
		"P-256, SPKI":               {der("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(ecKey.Public()))), keyformat.ErrAlgorithm},
		"X25519, PKCS #8":           {der("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(xKey))), keyformat.ErrAlgorithm},
		"X25519 of openssl":         {string(fixture(t, "openssl-x25519.pem")), keyformat.ErrAlgorithm},
		"X25519, SPKI":              {der("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(xKey.Public()))), keyformat.ErrAlgorithm},
		"Ed448":                     {string(fixture(t, "openssl-ed448.pem")), keyformat.ErrAlgorithm},
		"Ed448, SPKI":               {string(fixture(t, "openssl-ed448-public.pem")), keyformat.ErrFormat},
	}
}

// longer adds a byte inside the innermost octet string's frame.
func longer(pkcs8 []byte) []byte {
	b := append(bytes.Clone(pkcs8), 0)
	b[1]++
	b[13]++
	return b
}

// withNull adds one at the end of a sequence.
func withNull(sequence []byte) []byte {
	b := append(bytes.Clone(sequence), 5, 0)
	b[1] += 2
	return b
}

// identity is a point of small order.
func identity() []byte { return append([]byte{1}, make([]byte, 31)...) }

// version1 states a public half in a PKCS #8 of version 1, which has none.
func version1(version2, public []byte) []byte {
	b := slices.Concat(version2, public)
	b[4] = 0
	return b
}

func refusedJWK() map[string]refusal {
	x, d := base64url(testKey().Public().Bytes()), base64url(testKey().Private().Seed())
	jwk := func(members string) string {
		return fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519",%s}`, members)
	}
	good := jwk(`"x":"` + x + `","d":"` + d + `"`)
	return map[string]refusal{
		"an empty JWK":       {`{}`, keyformat.ErrFormat},
		"no JSON":            {good[:len(good)-1], keyformat.ErrFormat},
		"two JWKs":           {good + good, keyformat.ErrFormat},
		"a JWK Set":          {`{"keys":[` + good + `]}`, keyformat.ErrMore},
		"a list":             {`[` + good + `]`, keyformat.ErrFormat},
		"a member twice":     {jwk(`"x":"` + x + `","x":"` + x + `"`), keyformat.ErrFormat},
		"x of another key":   {jwk(`"x":"` + base64url(make([]byte, 32)) + `","d":"` + d + `"`), keyformat.ErrMismatch},
		"d without x":        {jwk(`"d":"` + d + `"`), keyformat.ErrFormat},
		"no x":               {jwk(`"kid":"1"`), keyformat.ErrFormat},
		"an empty d":         {jwk(`"x":"` + x + `","d":""`), keyformat.ErrFormat},
		"a number for d":     {jwk(`"x":"` + x + `","d":12345678`), keyformat.ErrFormat},
		"no d":               {jwk(`"x":"` + x + `","d":null`), keyformat.ErrFormat},
		"a short d":          {jwk(`"x":"` + x + `","d":"` + d[:42] + `"`), keyformat.ErrFormat},
		"a padded x":         {jwk(`"x":"` + x + `="`), keyformat.ErrFormat},
		"x in base64":        {jwk(`"x":"` + strings.Repeat("+", 42) + `A"`), keyformat.ErrFormat},
		"bits beyond x":      {jwk(`"x":"` + strings.Repeat("A", 42) + `B"`), keyformat.ErrFormat},
		"a line break in x":  {jwk(`"x":"` + x[:20] + `\n` + x[20:] + `"`), keyformat.ErrFormat},
		"a weak x":           {jwk(`"x":"` + base64url(identity()) + `"`), events.ErrWeakKey},
		"31 bytes and CR":    {jwk(`"x":"` + x[:41] + `A\r"`), keyformat.ErrFormat},
		"an X":               {jwk(`"X":"` + x + `"`), keyformat.ErrFormat},
		"an encryption key":  {jwk(`"x":"` + x + `","use":"enc"`), keyformat.ErrAlgorithm},
		"another algorithm":  {jwk(`"x":"` + x + `","alg":"ES256"`), keyformat.ErrAlgorithm},
		"an RSA JWK":         {`{"kty":"RSA","n":"` + x + `","e":"AQAB"}`, keyformat.ErrAlgorithm},
		"a P-256 JWK":        {`{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + x + `"}`, keyformat.ErrAlgorithm},
		"an X25519 JWK":      {`{"kty":"OKP","crv":"X25519","x":"` + x + `"}`, keyformat.ErrAlgorithm},
		"a curve's other":    {`{"kty":"EC","crv":"Ed25519","x":"` + x + `"}`, keyformat.ErrAlgorithm},
		"a symmetric key":    {`{"kty":"oct","k":"` + x + `"}`, keyformat.ErrAlgorithm},
		"something else":     {`{"app_id":"org.example.shop"}`, keyformat.ErrFormat},
		"broken UTF-8":       {jwk(`"x":"` + x + `","kid":"` + "\xff" + `"`), keyformat.ErrFormat},
		"a JWK, then prose":  {good + " and more", keyformat.ErrFormat},
		"prose within quote": {`{"SECRETSECRETSECRET`, keyformat.ErrFormat},
	}
}

func refusedOpenSSH(t testing.TB) map[string]refusal {
	file := fixture(t, "ssh")
	block, _ := pem.Decode(file)
	// The file states the public key in three places: before the part that could be locked, in that
	// part, and after the seed.
	const (
		outer = len("openssh-key-v1\x00") + 4 + len("none") + 4 + len("none") + 4 + 4 + 4 + 4 + len("ssh-ed25519") + 4
		inner = outer + 32 + 4 + 8 + 4 + len("ssh-ed25519") + 4
		after = inner + 32 + 4 + 32
	)
	with := func(change func(b []byte) []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: change(bytes.Clone(block.Bytes))}))
	}
	stating := func(at int) string {
		return with(func(b []byte) []byte {
			copy(b[at:], testKey().Public().Bytes())
			return b
		})
	}
	return map[string]refusal{
		"locked OpenSSH":      {string(fixture(t, "ssh-locked")), keyformat.ErrLocked},
		"ECDSA of ssh-keygen": {string(fixture(t, "ssh-ecdsa")), keyformat.ErrAlgorithm},
		"another outer half":  {stating(outer), keyformat.ErrMismatch},
		"another inner half":  {stating(inner), keyformat.ErrMismatch},
		"another after seed":  {stating(after), keyformat.ErrMismatch},
		"another seed":        {stating(inner + 32 + 4), keyformat.ErrMismatch},
		"OpenSSH, cut off":    {with(func(b []byte) []byte { return b[:100] }), keyformat.ErrFormat},
		"OpenSSH, no magic":   {with(func([]byte) []byte { return []byte("short") }), keyformat.ErrFormat},
		"OpenSSH, and more":   {with(func(b []byte) []byte { return append(b, 1, 2, 3) }), keyformat.ErrMore},
		"OpenSSH, other pads": {with(func(b []byte) []byte { b[len(b)-1]++; return b }), keyformat.ErrFormat},
		"OpenSSH, two blocks": {string(file) + string(file), keyformat.ErrMore},
	}
}
