package events_test

import (
	"errors"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"

	"filippo.io/edwards25519"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

// The grammar of docs/protocol.md §1, §2 and §4, once more: as regular expressions.
const (
	labelForm  = `[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?`
	appForm    = labelForm + `(?:\.` + labelForm + `){1,15}`
	targetForm = `(` + appForm + `)\.(` + labelForm + `)`

	longestAppID = 200
)

var (
	isAppID     = regexp.MustCompile(`\A` + appForm + `\z`)
	isServiceID = regexp.MustCompile(`\A` + labelForm + `\z`)
	isTarget    = regexp.MustCompile(`\A` + targetForm + `\z`)
	isNonce     = regexp.MustCompile(`\A[A-Za-z0-9_-]{8,64}\z`)
	// The last character of 43 carries four bits of the 32 bytes, that of 86 two bits of the 64:
	// the others are zero.
	isPublicKey = regexp.MustCompile(`\Aed25519:[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]\z`)
	isSignature = regexp.MustCompile(`\A[A-Za-z0-9_-]{85}[AQgw]\z`)
	isRequestOn = regexp.MustCompile(`\Aomi\.v1\.requests\.(?:rotation|binding|revocation)\.` + targetForm + `\z`)
)

// FuzzIDs: each form takes what its grammar takes, and nothing else; what it takes it prints back;
// what it refuses is absent, with the form's own error.
func FuzzIDs(f *testing.F) {
	f.Add(appText)
	f.Add(someTarget().String())
	f.Add(someHash)
	f.Add(someSignature)
	f.Add(appOf(longestAppID))
	f.Add(appOf(longestAppID + 1))
	f.Add(labels(16) + ".a")
	f.Add(labels(17))
	for _, s := range []string{
		strings.Repeat("a", 63), strings.Repeat("a", 64), "aAa", "a-_b", "_a", "a-", "a.aAa", "a.b.", ".a.b", "a..b", "1.2.3", "é.b.c", "abcdefg", "abcdefgh\n",
	} {
		f.Add(s)
	}
	for _, file := range vectors.Load(f).Keys {
		for _, key := range file.Keys {
			f.Add(key.PublicKey)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		app := isAppID.MatchString(s) && len(s) <= longestAppID
		checkID(t, s, app, events.ErrAppID, events.ParseAppID)
		checkID(t, s, isServiceID.MatchString(s), events.ErrServiceID, events.ParseServiceID)
		checkID(t, s, isNonce.MatchString(s), events.ErrNonce, events.ParseNonce)
		checkID(t, s, isPublicKey.MatchString(s), events.ErrPublicKey, events.ParsePublicKey)
		checkID(t, s, isSignature.MatchString(s), events.ErrSignature, events.ParseSignature)

		parts := isTarget.FindStringSubmatch(s)
		target, err := events.ParseTarget(s)
		if want := len(parts) > 0 && len(parts[1]) <= longestAppID; (err == nil) != want {
			t.Fatalf("ParseTarget(%q) = %v, %v; by the grammar it is one: %v", s, target, err, want)
		}
		if err == nil && (target.String() != s || target.App.String() != parts[1] || target.Service.String() != parts[2]) {
			t.Errorf("ParseTarget(%q) = %q of %q", s, target.Service, target.App)
		}
	})
}

// id is what the forms of §1 and §2 have in common.
type id interface {
	comparable
	String() string
	IsZero() bool
	MarshalText() ([]byte, error)
}

func checkID[T id](t *testing.T, s string, want bool, wantErr error, parse func(string) (T, error)) {
	t.Helper()
	got, err := parse(s)
	if !want {
		if !errors.Is(err, wantErr) || !got.IsZero() {
			t.Errorf("%q became a %T, %v, and does not have its form", s, got, err)
		}
		return
	}
	text, textErr := got.MarshalText()
	if err != nil || textErr != nil || got.String() != s || string(text) != s {
		t.Errorf("%q has the form of a %T, and became %q: %v", s, got, got, err)
	}
}

// FuzzSubject: a request's subject is one of §4's or none, and says whose request it is, whatever
// the message holds.
func FuzzSubject(f *testing.F) {
	for _, prefix := range []string{events.RotationSubject, events.BindingSubject, events.RevocationSubject, events.ReceiptSubject} {
		f.Add(prefix + someTarget().String())
		f.Add(prefix + labels(16))
		f.Add(prefix + labels(17) + ".a")
		f.Add(prefix + labels(2))
		f.Add(prefix + appOf(longestAppID+1) + ".a")
	}
	f.Fuzz(func(t *testing.T, subject string) {
		r, err := events.ParseRequest(subject, nil)
		parts := isRequestOn.FindStringSubmatch(subject)
		if len(parts) == 0 || len(parts[1]) > longestAppID {
			if !errors.Is(err, events.ErrSubject) || r != nil {
				t.Errorf("%q is no subject of a request, and gave %v, %v", subject, r, err)
			}
			return
		}
		if reasonOf(err) != events.MalformedMessage || r.Target.App.String() != parts[1] || r.Target.Service.String() != parts[2] {
			t.Fatalf("%q: %v, %v", subject, r, err)
		}
		var subjects []string
		for _, kind := range []events.RequestKind{events.Rotation, events.Binding, events.Reset, events.Revocation} {
			subjects = append(subjects, events.Draft{Kind: kind, Target: r.Target}.Subject())
		}
		if !slices.Contains(subjects, subject) {
			t.Errorf("no request of %s is sent on %q", r.Target, subject)
		}
	})
}

// FuzzKeyStrength holds the check for weak keys (§2) against the curve's equation in plain
// arithmetic.
func FuzzKeyStrength(f *testing.F) {
	f.Add(make([]byte, 32))
	for n := range byte(4) {
		f.Add(testKey(n).Public().Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := events.PublicKeyFromBytes(b)
		if err != nil {
			return
		}
		if err := key.CheckStrength(); errors.Is(err, events.ErrWeakKey) != weak(b) {
			t.Errorf("%x: %v, and by the curve's equation it is weak: %v", b, err, weak(b))
		}
	})
}

// weak decodes a point as RFC 8032 §5.1.3 says (-x² + y² = 1 + d x² y²), and says whether its order
// is another than L.
func weak(b []byte) bool {
	one := big.NewInt(1)
	p := new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19))
	mod := func(v *big.Int) *big.Int { return v.Mod(v, p) }
	d := new(big.Int).ModInverse(big.NewInt(121_666), p)
	mod(d.Mul(d, big.NewInt(-121_665)))

	big32 := slices.Clone(b)
	slices.Reverse(big32)
	big32[0] &= 0x7f
	y := new(big.Int).SetBytes(big32)
	if y.Cmp(p) >= 0 {
		return true
	}
	yy := mod(new(big.Int).Mul(y, y))
	denominator := mod(new(big.Int).Add(new(big.Int).Mul(d, yy), one))
	xx := mod(new(big.Int).Mul(new(big.Int).Sub(yy, one), new(big.Int).ModInverse(denominator, p)))
	if xx.Sign() == 0 || big.Jacobi(xx, p) != 1 {
		return true // no point has this y, or one of order 1 or 2
	}
	// The order is asked of another implementation of the curve: L-1 times a point is its negative
	// if L is its order.
	point, err := new(edwards25519.Point).SetBytes(b)
	if err != nil {
		return true
	}
	first := make([]byte, 32)
	first[0] = 1
	last, err := new(edwards25519.Scalar).SetCanonicalBytes(first)
	if err != nil {
		return true
	}
	last.Negate(last)
	return new(edwards25519.Point).ScalarMult(last, point).Equal(new(edwards25519.Point).Negate(point)) != 1
}
