package keyformat

import "regexp"

// privateMarks match parts of private keys, even if they are broken or cut: PEM's header, the
// beginning of PKCS #8 for Ed25519 and of OpenSSH's own form in base64, the d of a JWK (in quotes
// that may be quoted again), and a seed of NATS.
var privateMarks = regexp.MustCompile(`PRIVATE KEY|NKEY SEED|M[A-Za-z0-9+/]{2}CAQ[AE]wBQYDK2Vw|b3BlbnNzaC1rZXktdjE|` +
	`["']d\\?["']\s*:|(?:^|[^A-Za-z0-9])S[A-Z2-7]{50}`)

// LooksPrivate reports whether a text for display, such as the name of a file, contains something
// that looks like a private key in one of the forms. A private key as bare base64 or hexadecimal
// can't be distinguished from other text.
func LooksPrivate(text string) bool {
	if privateMarks.MatchString(text) {
		return true
	}
	key, err := Parse([]byte(text))
	return err == nil && !key.Private.IsZero()
}
