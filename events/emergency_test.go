package events_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
)

// emergencyDraft is a rotation that ends every earlier key.
func emergencyDraft() events.Draft {
	d := drafts()[events.Rotation]
	d.GracePeriod, d.EndEarlier = new(int64), true
	return d
}

// someEmergency is the event that it makes.
func someEmergency() events.Invalidation {
	i := someInvalidation(events.KeyRotation)
	i.GracePeriodExpiry, i.EndEarlier = i.Timestamp, true
	return i
}

// TestEndEarlier: it is true or left out, and goes with a grace period of 0, in a rotation.
func TestEndEarlier(t *testing.T) {
	t.Parallel()
	d := emergencyDraft()
	r, err := events.ParseRequest(d.Subject(), must(d.Sign(testKey(1))))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, draftOf(r, d.NewKey), exact); diff != "" {
		t.Errorf("the request differs from its draft:\n%s", diff)
	}
	const ended = `,"rotation_timestamp":1,"end_earlier":`
	for data, good := range map[string]bool{
		rotationText + ended + `true,"grace_period":0`:            true,
		rotationText + ended + `true,"grace_period":1`:            false,
		rotationText + ended + `true`:                             false, // the registry's own grace period
		rotationText + ended + `false,"grace_period":0`:           false,
		rotationText + ended + `false`:                            false,
		rotationText + ended + `"true","grace_period":0`:          false,
		rotationText + ended + `1,"grace_period":0`:               false,
		rotationText + `,"rotation_timestamp":1,"grace_period":0`: true,
	} {
		if _, err := events.ParseRequest(rotationTo, []byte(envelopeOf(`{`+data+`}`))); good && err != nil || !good && reasonOf(err) != events.InvalidField {
			t.Errorf("%s: %v", data, err)
		}
	}
	for _, c := range []struct{ subject, data string }{{bindingTo, bindingText}, {revokeTo, revokeText}} {
		if _, err := events.ParseRequest(c.subject, []byte(envelopeOf(`{`+c.data+`,"end_earlier":true}`))); reasonOf(err) != events.InvalidField {
			t.Errorf("%s: %v", c.data, err)
		}
	}
}

// TestEmergencyEvent: end_earlier stands in a rotation without a grace period, and in no other
// event.
func TestEmergencyEvent(t *testing.T) {
	t.Parallel()
	want := someEmergency()
	got, err := someTrust().Invalidation(want.Subject(), want.Sign(testKey(0)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, exact); diff != "" {
		t.Errorf("what is read differs from what was signed:\n%s", diff)
	}
	for _, kind := range eventKinds {
		i := someInvalidation(kind) // a rotation has a grace period
		i.EndEarlier = true
		if _, err := someTrust().Invalidation(i.Subject(), i.Sign(testKey(0))); reasonOf(err) != events.InvalidField {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// TestOrigin: a request may name the registry that it is for, by a domain name.
func TestOrigin(t *testing.T) {
	t.Parallel()
	for name, good := range map[string]bool{
		`"omiappreg.org"`: true, `"localhost"`: true, `"Omiappreg.org"`: false, `""`: false, `"a..b"`: false, `"https://a.example"`: false,
		`"a.example\u0000"`: false, `null`: false, `["a.example"]`: false, `1`: false,
	} {
		for _, c := range []struct{ subject, data string }{
			{rotationTo, rotationText + `,"rotation_timestamp":1`}, {bindingTo, bindingText}, {revokeTo, revokeText},
		} {
			r, err := events.ParseRequest(c.subject, []byte(envelopeOf(`{`+c.data+`,"origin":`+name+`}`)))
			if good && err != nil || !good && reasonOf(err) != events.InvalidField {
				t.Errorf("origin %s of %s: %v", name, c.subject, err)
			}
			if good && (r.IsFor("staging.example") || !r.IsFor(r.Origin) || `"`+r.Origin+`"` != name) {
				t.Errorf("a request for %s is for %q", name, r.Origin)
			}
		}
	}
	if r := new(events.Request); !r.IsFor("a.example") {
		t.Error("a request that names no registry is for none")
	}
}
