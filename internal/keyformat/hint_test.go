package keyformat_test

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"unicode/utf16"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyformat"
)

func encodePrivate(t *testing.T, key events.SigningKey, form keyformat.Format) string {
	t.Helper()
	b, err := keyformat.EncodePrivate(key, form)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func utf16Text(text string) string {
	var b []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		b = append(b, byte(unit), byte(unit>>8))
	}
	return string(b)
}

// TestHints: a key that an editor, a shell or a tool has changed is refused with a text that says
// what happened to it, and never quotes it.
func TestHints(t *testing.T) {
	t.Parallel()
	key := events.GenerateSigningKey()
	text := encodePrivate(t, key, keyformat.PEM)
	block, _ := pem.Decode([]byte(text))
	lines := strings.Split(strings.TrimSpace(text), "\n")
	secret := lines[1]
	certificate := strings.ReplaceAll(text, "PRIVATE KEY", "CERTIFICATE")
	for name, c := range map[string]struct{ content, says string }{
		"nothing":             {" \n", "it is empty"},
		"a byte order mark":   {"\xef\xbb\xbf" + text, "tail -c +4"},
		"UTF-16, marked":      {"\xff\xfe" + utf16Text(text), "iconv -f UTF-16"},
		"UTF-16":              {utf16Text(text), "iconv -f UTF-16"},
		"DER":                 {string(block.Bytes), "-inform DER"},
		"literal breaks":      {strings.ReplaceAll(text, "\n", `\n`), `printf '%b\n'`},
		"literal, quoted":     {`"` + strings.ReplaceAll(text, "\n", `\n`) + `"`, `printf '%b\n'`},
		"quoted":              {`"` + text + `"`, "without quotes"},
		"in YAML":             {"key: |\n  " + strings.Join(lines, "\n  "), "text before the key"},
		"indented":            {"  " + strings.Join(lines, "\n  "), "sed 's/^"},
		"indented by tabs":    {"\t" + strings.Join(lines, "\n\t"), "sed 's/^"},
		"one line":            {strings.Join(lines, " "), "line breaks are gone"},
		"old Mac":             {strings.Join(lines, "\r"), "tr '\\r' '\\n'"},
		"cut off":             {strings.Join(lines[:2], "\n"), "it is cut off"},
		"base64 of PEM":       {base64.StdEncoding.EncodeToString([]byte(text)), "base64 -d FILE > NEW"},
		"base64, in lines":    {base64.StdEncoding.EncodeToString([]byte(text))[:76] + "\n" + base64.StdEncoding.EncodeToString([]byte(text))[76:], "base64 -d FILE > NEW"},
		"base64 of DER":       {secret, "openssl pkey -inform DER"},
		"a certificate":       {certificate, "it is a certificate"},
		"credentials":         {strings.ReplaceAll(text, "PRIVATE KEY", "NATS USER JWT"), "--nats-creds"},
		"PGP":                 {strings.ReplaceAll(text, "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"), "PGP"},
		"PuTTY":               {"PuTTY-User-Key-File-3: ssh-ed25519\n" + secret, "puttygen"},
		"a comment before it": {"# a comment\n" + text, "text before the key"},
	} {
		_, strict := keyformat.ParsePrivate([]byte(c.content))
		_, loose := keyformat.Parse([]byte(c.content))
		for _, err := range []error{strict, loose} {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %s", name, err, c.says)
			} else if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), secret[20:40]) {
				t.Errorf("%s: the error quotes the key: %v", name, err)
			}
		}
		if !errors.Is(loose, keyformat.ErrFormat) {
			t.Errorf("%s: %v", name, loose)
		}
	}
}

// TestParsePrivate: it accepts one block of PKCS #8 with white space around it, and nothing more.
func TestParsePrivate(t *testing.T) {
	t.Parallel()
	key := events.GenerateSigningKey()
	text := encodePrivate(t, key, keyformat.PEM)
	for _, good := range []string{text, "\n \t" + text + "\r\n\n", strings.ReplaceAll(text, "\n", "\r\n")} {
		if got, err := keyformat.ParsePrivate([]byte(good)); err != nil || got.Public() != key.Public() {
			t.Errorf("%v", err)
		}
	}
	certificate := strings.ReplaceAll(text, "PRIVATE KEY", "CERTIFICATE")
	public, err := keyformat.EncodePublic(key.Public(), keyformat.PEM)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content string
		want    error
	}{
		"a certificate after it":  {text + certificate, keyformat.ErrMore},
		"a certificate before it": {certificate + text, keyformat.ErrMore},
		"a chain after it":        {text + strings.Repeat(certificate, 200), keyformat.ErrMore},
		"two keys":                {text + text, keyformat.ErrMore},
		"a word after it":         {text + "word", keyformat.ErrMore},
		"a header":                {strings.Replace(text, "-----\n", "-----\nName: cms\n\n", 1), keyformat.ErrMore},
		"OpenSSH":                 {encodePrivate(t, key, keyformat.OpenSSH), keyformat.ErrOtherForm},
		"a JWK":                   {encodePrivate(t, key, keyformat.JWK), keyformat.ErrOtherForm},
		"an nkey":                 {encodePrivate(t, key, keyformat.NKey), keyformat.ErrOtherForm},
		"a public key":            {string(public), keyformat.ErrPublicHalf},
		"locked":                  {string(fixture(t, "openssl-locked.pem")), keyformat.ErrLocked},
		"zeros":                   {string(make([]byte, 1<<15)), keyformat.ErrFormat},
	} {
		if _, err := keyformat.ParsePrivate([]byte(c.content)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
