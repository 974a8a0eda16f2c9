package keyformat

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"omiappreg.org/keyrotation/events"
)

// Errors of [ParsePrivate] about keys that are good, but of the wrong kind.
var (
	ErrOtherForm  = errors.New("a private key in another form")
	ErrPublicHalf = errors.New("it is a public key: name the file of its private half")
)

// ParsePrivate reads a private key in the form that this project writes: one block of PEM with PKCS
// #8 in it, and nothing more than white space. So nothing else in the file could be lost when
// another key replaces it. An error that is not one of this package's errors says what the content
// looks like, and how to convert it.
func ParsePrivate(content []byte) (events.SigningKey, error) {
	key, err := parse(content)
	switch hint := Hint(content); {
	case errors.Is(err, ErrFormat) && hint != "":
		return events.SigningKey{}, errors.New(hint)
	case err != nil:
		return events.SigningKey{}, err
	case key.Private.IsZero():
		return events.SigningKey{}, ErrPublicHalf
	}
	if block, _ := pem.Decode(bytes.TrimSpace(content)); block == nil || block.Type != pkcs8Type {
		return events.SigningKey{}, ErrOtherForm
	}
	return key.Private, nil
}

// Hint says what the content of a file looks like if it is no key in a known form, and how to make
// a key of it. It returns an empty text if it recognises nothing. It never quotes the content.
func Hint(content []byte) string {
	text := string(bytes.TrimSpace(content))
	switch begins := strings.HasPrefix(text, pemBegin); {
	case text == "":
		return "it is empty"
	case isUTF16(content):
		return "it is UTF-16, as some Windows programs write: (umask 077; iconv -f UTF-16 -t UTF-8 FILE > NEW)"
	case bytes.HasPrefix(content, []byte("\xef\xbb\xbf")):
		return "it begins with a byte order mark, as Windows editors write: (umask 077; tail -c +4 FILE > NEW)"
	case isDER(content):
		return "it is DER, which is PEM's content alone: (umask 077; openssl pkey -inform DER -in FILE -out NEW)"
	case begins:
		return hintOfPEM(text)
	case strings.HasPrefix(text, "PuTTY-User-Key-File-"):
		return "it is a key of PuTTY: puttygen FILE -O private-openssh -o NEW, and then omi keygen --from NEW"
	case strings.Contains(text, `\n`) && strings.Contains(text, pemBegin):
		return literalBreaks
	case strings.Contains(text, pemBegin):
		return "there is text before the key: give one key alone, without quotes"
	}
	return hintOfBase64(text)
}

const literalBreaks = `its line breaks are the two characters \ and n, as in JSON: (umask 077; printf '%b\n' "$(cat FILE)" > NEW), ` +
	"and remove quotes"

// hintOfPEM says what is wrong with a text that begins like PEM.
func hintOfPEM(text string) string {
	label, _, _ := strings.Cut(strings.TrimPrefix(text, pemBegin), "-----")
	switch {
	case strings.Contains(text, `\n`):
		return literalBreaks
	case !strings.Contains(text, "-----END "):
		return "it is cut off: its last line is missing"
	case !strings.ContainsAny(text, "\r\n"):
		return `its line breaks are gone, as by a shell's variable without quotes: copy it again, with printf '%s\n' "$NAME"`
	case !strings.Contains(text, "\n"):
		return `its lines end as on old Macs: (umask 077; tr '\r' '\n' < FILE > NEW)`
	case strings.Contains(text, "\n ") || strings.Contains(text, "\n\t"):
		return "its lines are indented, as in YAML: (umask 077; sed 's/^[[:blank:]]*//' FILE > NEW)"
	case strings.Contains(label, "CERTIFICATE REQUEST"):
		return "it is a certificate request: name the file of its private key"
	case strings.Contains(label, "CERTIFICATE"):
		return "it is a certificate: name the file of its private key"
	case strings.HasPrefix(label, "NATS"):
		return "it holds NATS credentials, which --nats-creds takes"
	case strings.HasPrefix(label, "PGP"):
		return "it is a key of PGP, which can't be used here: omi keygen makes one that can"
	}
	return ""
}

// hintOfBase64 says what a base64 text contains.
func hintOfBase64(text string) string {
	packed := strings.TrimRight(strings.Join(strings.Fields(text), ""), "=")
	content, err := base64.RawStdEncoding.DecodeString(packed)
	switch {
	case err != nil:
		return ""
	case bytes.HasPrefix(bytes.TrimSpace(content), []byte(pemBegin)):
		return "it is the base64 of a PEM, as in a Kubernetes Secret: (umask 077; base64 -d FILE > NEW)"
	case isDER(content):
		return "it is PEM without its first and last line: (umask 077; base64 -d FILE | openssl pkey -inform DER -out NEW)"
	}
	return ""
}

// isUTF16 looks for the byte order mark of UTF-16, or for ASCII in two bytes each.
func isUTF16(content []byte) bool {
	for _, mark := range []string{"\xff\xfe", "\xfe\xff", "-\x00-\x00", "\x00-\x00-"} {
		if bytes.HasPrefix(content, []byte(mark)) {
			return true
		}
	}
	return false
}

// isDER reports whether the whole content is one sequence of ASN.1 that begins as keys do.
func isDER(content []byte) bool {
	input, sequence := cryptobyte.String(content), cryptobyte.String(nil)
	return input.ReadASN1(&sequence, der.SEQUENCE) && input.Empty() &&
		(sequence.PeekASN1Tag(der.INTEGER) || sequence.PeekASN1Tag(der.SEQUENCE))
}
