package events_test

import (
	"errors"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
)

// labels returns n labels of one letter, joined by dots.
func labels(n int) string { return strings.TrimSuffix(strings.Repeat("a.", n), ".") }

// appOf returns an app id of n bytes, as long as 200 need.
func appOf(n int) string {
	label := strings.Repeat("a", 63) + "."
	return strings.Repeat(label, 3) + strings.Repeat("b", n-3*len(label))
}

func TestParseAppID(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		appText, "a.b", "0.9", "a-b.c_d", "a--b.c__d", labels(2), labels(16),
		strings.Repeat("a", 63) + ".b", appOf(200),
	} {
		if id, err := events.ParseAppID(s); err != nil || id.String() != s || id.IsZero() {
			t.Errorf("ParseAppID(%q) = %q, %v", s, id, err)
		}
	}
	for _, s := range []string{
		"", ".", "a", "a.", ".a", "a..b", labels(1), labels(17), appOf(201), strings.Repeat("a", 64) + ".b",
		"A.b", "a.-b", "a.b-", "a._b", "a.b_", "a.*", "a.>", "a.b c", "a. b", "a.b\n", "a.b\x00", "a.ä", "a.b/c",
	} {
		if id, err := events.ParseAppID(s); !errors.Is(err, events.ErrAppID) || !id.IsZero() {
			t.Errorf("ParseAppID(%q) = %q, %v", s, id, err)
		}
	}
}

func TestParseServiceID(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a", "7", "cms-article-77", "a_b", "a--b", strings.Repeat("a", 63)} {
		if id, err := events.ParseServiceID(s); err != nil || id.String() != s || id.IsZero() {
			t.Errorf("ParseServiceID(%q) = %q, %v", s, id, err)
		}
	}
	for _, s := range []string{"", "-", "_", "a-", "-a", "a.b", "A", "*", ">", " ", "a b", "a\n", "é", strings.Repeat("a", 64)} {
		if id, err := events.ParseServiceID(s); !errors.Is(err, events.ErrServiceID) || !id.IsZero() {
			t.Errorf("ParseServiceID(%q) = %q, %v", s, id, err)
		}
	}
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for _, s := range []string{appText + ".cms-article-77", labels(3), labels(17), appOf(200) + "." + strings.Repeat("c", 63)} {
		target, err := events.ParseTarget(s)
		if err != nil || target.String() != s || strings.Contains(target.Service.String(), ".") {
			t.Errorf("ParseTarget(%q) = %q, %v", s, target, err)
		}
	}
	for _, s := range []string{"", "a", "a.b", "a.b.", ".a.b", "a..b", labels(18), "a.b.*", "a.*.b", "*.a.b", "a.b.>", appOf(201) + ".c"} {
		if target, err := events.ParseTarget(s); err == nil || target != (events.Target{}) {
			t.Errorf("ParseTarget(%q) = %q, %v", s, target, err)
		}
	}
}

func TestParseNonce(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"m5n8b2v1", "AZaz09_-", strings.Repeat("a", 64), events.NewNonce().String()} {
		if n, err := events.ParseNonce(s); err != nil || n.String() != s || n.IsZero() {
			t.Errorf("ParseNonce(%q) = %q, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "1234567", strings.Repeat("a", 65), "1234567=", "1234567.", "1234567 ", "1234567\n", "1234567é", "1234567+"} {
		if n, err := events.ParseNonce(s); !errors.Is(err, events.ErrNonce) || !n.IsZero() {
			t.Errorf("ParseNonce(%q) = %q, %v", s, n, err)
		}
	}
	if n := events.NewNonce(); len(n.String()) != 22 || n == events.NewNonce() {
		t.Errorf("NewNonce() = %q, which is not 128 random bits in base64url", n)
	}
}

// TestSubjectsThatNameNobody: nobody can be answered, so ParseRequest returns no request at all.
func TestSubjectsThatNameNobody(t *testing.T) {
	t.Parallel()
	d := drafts()[events.Rotation]
	message, err := d.Sign(testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{
		"", ".", "omi", "omi.v1.requests.rotation", events.RotationSubject, events.RotationSubject + "a.b",
		events.RotationSubject + "*.b.c", events.RotationSubject + "a.b.*", events.RotationSubject + ">",
		events.RotationSubject + "a.b.>", events.RotationSubject + "a..b.c", events.RotationSubject + ".a.b.c",
		events.RotationSubject + "a.b.c.", events.RotationSubject + "a.b c.d", events.RotationSubject + "a.b.c ",
		events.RotationSubject + "A.b.c", " " + d.Subject(), d.Subject() + "\n", "x" + d.Subject(),
		"omi.v2.requests.rotation." + d.Target.String(), "omi.v1.requests.refund." + d.Target.String(),
		events.InvalidationSubject + d.Target.String(), events.ReceiptSubject + d.Target.String(),
	} {
		if r, err := events.ParseRequest(subject, message); !errors.Is(err, events.ErrSubject) || r != nil {
			t.Errorf("ParseRequest(%q) = %v, %v", subject, r, err)
		}
	}
}

// TestOtherSubjectsOfRegistry: a signed event counts only on the subject of its own service.
func TestOtherSubjectsOfRegistry(t *testing.T) {
	t.Parallel()
	i := someInvalidation(events.KeyRotation)
	message := i.Sign(testKey(0))
	for _, subject := range []string{
		"", events.InvalidationSubject, i.Target.String(), events.InvalidationSubject + "*", events.InvalidationSubject + ">",
		events.ReceiptSubject + i.Target.String(), i.Subject() + ".x", i.Subject() + " ", i.Subject() + ".",
		strings.Replace(i.Subject(), "alice", "carol", 1), events.InvalidationSubject + i.Target.App.String(),
	} {
		if _, err := someTrust().Invalidation(subject, message); reasonOf(err) != events.TargetMismatch {
			t.Errorf("on subject %q: %v", subject, err)
		}
	}
}

func TestCheckOrigin(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"omiappreg.org", "localhost", "a-b.example", "xn--bcher-kva.example", strings.Repeat("a", 63) + ".org"} {
		if err := events.CheckOrigin(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "foo bar", "omiappreg.org ", "OmiAppReg.org", ".org", "omiappreg.org.", "a..b", "-a.org", "a_b.org", "bücher.example", "a.org:80",
		"https://a.org", strings.Repeat("a", 64) + ".org", strings.Repeat("a.", 127) + "a",
	} {
		if err := events.CheckOrigin(bad); !errors.Is(err, events.ErrOrigin) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
