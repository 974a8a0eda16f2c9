package events

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
)

// Limits of docs/protocol.md §1, in bytes and labels.
const (
	maxLabel     = 63
	maxOrigin    = 253 // of a domain name (RFC 1035)
	maxAppID     = 200
	minAppLabels = 2
	maxAppLabels = 16
	minNonce     = 8
	maxNonce     = 64
)

// Errors of the forms of identifiers (§1). They say which form is accepted, because their readers
// are people at a shell.
var (
	ErrAppID     = errors.New("an app id is 2 to 16 labels joined by dots, 200 bytes at most, each label lower-case letters, digits, '_' and '-' (for example org.omiappreg.alice.shop.7f8a9d)")
	ErrServiceID = errors.New("a service id is one label of 1 to 63 lower-case letters, digits, '_' and '-', with a letter or digit at both ends (for example cms-article-77)")
	ErrOrigin    = errors.New("an origin is the registry's domain name, in lower case (for example omiappreg.org)")
	ErrNonce     = errors.New("a nonce is 8 to 64 characters of A-Z, a-z, 0-9, '_' and '-'")
)

// CheckOrigin returns nil for a domain name, and otherwise [ErrOrigin]. Use it where an origin is
// chosen; in a message, the origin is only compared.
func CheckOrigin(s string) error {
	if len(s) > maxOrigin || strings.Contains(s, "_") {
		return ErrOrigin
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return ErrOrigin
		}
	}
	return nil
}

// AppID names an application: reversed registry domain, namespace, project slug and hash (§1). The
// zero value means "absent".
type AppID struct{ s string }

// ParseAppID returns s as an app id, or [ErrAppID].
func ParseAppID(s string) (AppID, error) {
	if len(s) > maxAppID {
		return AppID{}, ErrAppID
	}
	labels := 0
	for label := range strings.SplitSeq(s, ".") {
		if labels++; !isLabel(label) {
			return AppID{}, ErrAppID
		}
	}
	if labels < minAppLabels || labels > maxAppLabels {
		return AppID{}, ErrAppID
	}
	return AppID{s}, nil
}

// String returns the id as it stands on the wire.
func (a AppID) String() string { return a.s }

// IsZero reports whether the id is absent.
func (a AppID) IsZero() bool { return a.s == "" }

// MarshalText implements encoding.TextMarshaler.
func (a AppID) MarshalText() ([]byte, error) { return []byte(a.s), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it fails with [ErrAppID].
func (a *AppID) UnmarshalText(b []byte) (err error) { *a, err = ParseAppID(string(b)); return err }

// ServiceID names one Domain Service of an application (§1). The zero value means "absent".
type ServiceID struct{ s string }

// ParseServiceID returns s as a service id, or [ErrServiceID].
func ParseServiceID(s string) (ServiceID, error) {
	if !isLabel(s) {
		return ServiceID{}, ErrServiceID
	}
	return ServiceID{s}, nil
}

// String returns the id as it stands on the wire.
func (s ServiceID) String() string { return s.s }

// IsZero reports whether the id is absent.
func (s ServiceID) IsZero() bool { return s.s == "" }

// MarshalText implements encoding.TextMarshaler.
func (s ServiceID) MarshalText() ([]byte, error) { return []byte(s.s), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it fails with [ErrServiceID].
func (s *ServiceID) UnmarshalText(b []byte) (err error) {
	*s, err = ParseServiceID(string(b))
	return err
}

// Target is one service of one app, `<app_id>.<service_id>`: the last tokens of every subject (§4).
// It is comparable. Two targets never have the same text, because a service id has no dot.
type Target struct {
	App     AppID
	Service ServiceID
}

// ParseTarget splits `<app_id>.<service_id>` at its last dot.
func ParseTarget(s string) (Target, error) {
	dot := strings.LastIndexByte(s, '.')
	if dot < 0 {
		return Target{}, ErrAppID
	}
	app, err := ParseAppID(s[:dot])
	if err != nil {
		return Target{}, err
	}
	service, err := ParseServiceID(s[dot+1:])
	if err != nil {
		return Target{}, err
	}
	return Target{app, service}, nil
}

// String returns `<app_id>.<service_id>`.
func (t Target) String() string { return t.App.s + "." + t.Service.s }

// IsZero reports whether the target is absent.
func (t Target) IsZero() bool { return t == Target{} }

// Nonce names one message (§1). The zero value means "absent".
type Nonce struct{ s string }

// NewNonce returns 128 random bits in base64url: 22 characters.
func NewNonce() Nonce {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return Nonce{base64.RawURLEncoding.EncodeToString(b[:])}
}

// ParseNonce returns s as a nonce, or [ErrNonce].
func ParseNonce(s string) (Nonce, error) {
	if len(s) < minNonce || len(s) > maxNonce {
		return Nonce{}, ErrNonce
	}
	for i := range len(s) {
		if c := s[i]; !isLowerOrDigit(c) && (c < 'A' || c > 'Z') && c != '_' && c != '-' {
			return Nonce{}, ErrNonce
		}
	}
	return Nonce{s}, nil
}

// String returns the nonce as it stands on the wire.
func (n Nonce) String() string { return n.s }

// IsZero reports whether the nonce is absent.
func (n Nonce) IsZero() bool { return n.s == "" }

// MarshalText implements encoding.TextMarshaler.
func (n Nonce) MarshalText() ([]byte, error) { return []byte(n.s), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it fails with [ErrNonce].
func (n *Nonce) UnmarshalText(b []byte) (err error) { *n, err = ParseNonce(string(b)); return err }

// isLabel reports whether s is `[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?`.
func isLabel(s string) bool {
	if len(s) == 0 || len(s) > maxLabel || !isLowerOrDigit(s[0]) || !isLowerOrDigit(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isLowerOrDigit(c) && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func isLowerOrDigit(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
