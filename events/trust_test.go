package events_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
)

// someInvalidation returns an event with the members that its kind has.
func someInvalidation(kind events.EventKind) events.Invalidation {
	i := events.Invalidation{
		Origin: origin, Target: someTarget(), Event: kind, OldKey: testKey(1).Public(), NewKey: testKey(2).Public(),
		GracePeriodExpiry: now, Timestamp: now, Nonce: someNonce(), Sequence: 2,
	}
	switch kind {
	case events.KeyRotation:
		i.GracePeriodExpiry += 300
	case events.ServiceBinding:
		i.OldKey = events.PublicKey{}
	case events.ServiceRevocation:
		i.NewKey = events.PublicKey{}
	}
	return i
}

var eventKinds = []events.EventKind{events.ServiceBinding, events.KeyRotation, events.MasterReset, events.ServiceRevocation}

func TestInvalidation(t *testing.T) {
	t.Parallel()
	for _, kind := range eventKinds {
		for _, sequence := range []int64{0, 1, events.MaxSafeInteger} {
			want := someInvalidation(kind)
			want.Sequence = sequence
			got, err := someTrust().Invalidation(want.Subject(), want.Sign(testKey(0)))
			if err != nil {
				t.Errorf("%s: %v", kind, err)
			} else if diff := cmp.Diff(want, got, exact); diff != "" {
				t.Errorf("%s: what is read differs from what was signed:\n%s", kind, diff)
			}
		}
	}
}

// TestInvalidationOrder: the shape that docs/protocol.md §7.1 prints.
func TestInvalidationOrder(t *testing.T) {
	t.Parallel()
	data := `{"origin":"omiappreg.org","app_id":"` + appText + `","service_id":"cms-article-77","event":"KEY_ROTATION",` +
		`"old_public_key":"` + testKey(1).Public().String() + `","new_public_key":"` + testKey(2).Public().String() + `",` +
		`"grace_period_expiry":1705412900,"timestamp":1705412600,"nonce":"` + someHash + `","sequence":2}`
	want := fmt.Sprintf(`{"version":"1.0","data":%s,"signature":"%s","key_id":"%s"}`,
		data, testKey(0).Sign(must(events.Canonical([]byte(data)))), testKey(0).Public().KeyID())
	i := someInvalidation(events.KeyRotation)
	if got := string(i.Sign(testKey(0))); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// TestInvalidationTable holds each event against the table of docs/protocol.md §7.1.
func TestInvalidationTable(t *testing.T) {
	t.Parallel()
	for _, kind := range eventKinds {
		for name, change := range map[string]func(*events.Invalidation){
			"old key":  func(i *events.Invalidation) { i.OldKey = flip(i.OldKey, testKey(1)) },
			"new key":  func(i *events.Invalidation) { i.NewKey = flip(i.NewKey, testKey(2)) },
			"end":      func(i *events.Invalidation) { i.GracePeriodExpiry = i.Timestamp - 1 },
			"no nonce": func(i *events.Invalidation) { i.Nonce = events.Nonce{} },
			"sequence": func(i *events.Invalidation) { i.Sequence = -1 },
			"time":     func(i *events.Invalidation) { i.Timestamp, i.GracePeriodExpiry = -1, -1 },
		} {
			i := someInvalidation(kind)
			change(&i)
			if _, err := someTrust().Invalidation(i.Subject(), i.Sign(testKey(0))); reasonOf(err) != events.InvalidField {
				t.Errorf("%s with another %s: %v", kind, name, err)
			}
		}
		if kind == events.KeyRotation {
			continue // the only one that may have a grace period
		}
		i := someInvalidation(kind)
		i.GracePeriodExpiry++
		if _, err := someTrust().Invalidation(i.Subject(), i.Sign(testKey(0))); reasonOf(err) != events.InvalidField {
			t.Errorf("%s with a grace period: %v", kind, err)
		}
	}
}

// flip takes a key away where there is one, and adds one where there is none.
func flip(have events.PublicKey, other events.SigningKey) events.PublicKey {
	if have.IsZero() {
		return other.Public()
	}
	return events.PublicKey{}
}

func TestSequenceZero(t *testing.T) {
	t.Parallel()
	i := someInvalidation(events.KeyRotation)
	message := resigned(t, strings.Replace(string(i.Sign(testKey(0))), `"sequence":2`, `"sequence":0`, 1))
	if _, err := someTrust().Invalidation(i.Subject(), message); reasonOf(err) != events.InvalidField {
		t.Errorf("an event at sequence 0, which is not the same as one without: %v", err)
	}
}

func TestReceipt(t *testing.T) {
	t.Parallel()
	base := events.Receipt{Origin: origin, Target: someTarget(), RequestNonce: someNonce(), Timestamp: now, Nonce: events.NewNonce()}
	committed, rejected, unreadable := base, base, base
	committed.Event, committed.Sequence, committed.PublicKey = events.RequestCommitted, 3, testKey(2).Public()
	committed.GracePeriodExpiry, committed.EventNonce = now+300, events.NewNonce()
	revoked, ended := committed, committed
	revoked.PublicKey = events.PublicKey{}
	ended.GracePeriodExpiry = 0 // it is written, although it is zero
	rejected.Event, rejected.Reason, rejected.Detail = events.RequestRejected, events.WeakKey, "A sentence."
	rejected.RequestHash = events.RequestHash([]byte("what was published"))
	unreadable.Event, unreadable.Reason, unreadable.RequestNonce = events.RequestRejected, events.MalformedMessage, events.Nonce{}

	for name, want := range map[string]events.Receipt{
		"committed": committed, "revoked": revoked, "ended": ended, "rejected": rejected, "unreadable": unreadable,
	} {
		message := want.Sign(testKey(0))
		got, err := someTrust().Receipt(want.Subject(), message)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got, exact); diff != "" {
			t.Errorf("%s: what is read differs from what was signed:\n%s", name, diff)
		}
		if has := strings.Contains(string(message), `"grace_period_expiry"`); has != (want.Event == events.RequestCommitted) {
			t.Errorf("%s: %s", name, message)
		}
		if _, err := someTrust().Receipt(events.InvalidationSubject+want.Target.String(), message); reasonOf(err) != events.TargetMismatch {
			t.Errorf("%s, among invalidations: %v", name, err)
		}
		if _, err := someTrust().Invalidation(events.InvalidationSubject+want.Target.String(), message); reasonOf(err) != events.UnknownEvent {
			t.Errorf("%s, as an invalidation: %v", name, err)
		}
	}
}

func TestReceiptOfAnotherKind(t *testing.T) {
	t.Parallel()
	for kind, want := range map[events.ReceiptKind]events.Reason{
		"REQUEST_POSTPONED":     events.UnknownEvent,
		events.RequestRejected:  events.InvalidField, // without a reason
		events.RequestCommitted: events.InvalidField, // without the event's nonce
	} {
		r := events.Receipt{Origin: origin, Target: someTarget(), Event: kind, Timestamp: now, Nonce: events.NewNonce()}
		if _, err := someTrust().Receipt(r.Subject(), r.Sign(testKey(0))); reasonOf(err) != want {
			t.Errorf("%s: %v, want %s", kind, err, want)
		}
	}
}

// TestRequestHash: of the bytes as they were published, which anybody can do again.
func TestRequestHash(t *testing.T) {
	t.Parallel()
	const want = "n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg" // of "test", in base64url
	if got := events.RequestHash([]byte("test")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSequenceOf(t *testing.T) {
	t.Parallel()
	with, without := someInvalidation(events.KeyRotation), someInvalidation(events.KeyRotation)
	without.Sequence = 0
	for message, want := range map[string]int64{
		string(with.Sign(testKey(0))): 2, string(without.Sign(testKey(0))): 0, "": 0, "{}": 0, envelopeOf(`{"sequence":"2"}`): 0,
	} {
		if got := events.SequenceOf([]byte(message)); got != want {
			t.Errorf("%s: got %d, want %d", message, got, want)
		}
	}
}

// TestTrust: who signed, with what hint, for which origin.
func TestTrust(t *testing.T) {
	t.Parallel()
	i := someInvalidation(events.KeyRotation)
	message := i.Sign(testKey(0))
	both := must(events.NewTrust(origin, testKey(9).Public(), testKey(0).Public()))
	other := must(events.NewTrust(origin, testKey(9).Public()))
	elsewhere := must(events.NewTrust("elsewhere.example", testKey(0).Public()))
	for name, tc := range map[string]struct {
		trust   events.Trust
		message []byte
		want    events.Reason
	}{
		"one key":             {someTrust(), message, ""},
		"two keys":            {both, message, ""},
		"hint at another key": {both, withMember(t, message, "key_id", testKey(9).Public().KeyID()), ""},
		"hint at no key":      {both, withMember(t, message, "key_id", "AAAAAAAAAAAAAAAA"), ""},
		"hint is no string":   {both, withMember(t, message, "key_id", 7), ""},
		"no hint":             {both, withMember(t, message, "key_id", nil), ""},
		"another key":         {other, message, events.UntrustedSignature},
		"hint is not trust":   {other, withMember(t, message, "key_id", testKey(9).Public().KeyID()), events.UntrustedSignature},
		"nobody's":            {events.Trust{}, message, events.UntrustedSignature},
		"another origin":      {elsewhere, message, events.WrongOrigin},
		"later member":        {someTrust(), withMember(t, message, "urgency", "high"), ""},
		"other version":       {someTrust(), withMember(t, message, "version", "2.0"), events.UnsupportedVersion},
		"no signature":        {someTrust(), withMember(t, message, "signature", nil), events.InvalidField},
	} {
		if _, err := tc.trust.Invalidation(i.Subject(), tc.message); reasonOf(err) != tc.want {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	for _, keys := range [][]events.PublicKey{nil, {}} {
		if _, err := events.NewTrust(origin, keys...); !errors.Is(err, events.ErrNoTrust) {
			t.Errorf("trust in no keys: %v", err)
		}
	}
	if _, err := events.NewTrust("", testKey(0).Public()); !errors.Is(err, events.ErrNoTrust) {
		t.Errorf("trust in no origin: %v", err)
	}
}
