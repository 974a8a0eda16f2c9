package events_test

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gowebpki/jcs"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

// FuzzParseRequest: nothing makes the parser panic, every refusal is one of the contract's, and
// what parses is wholly in the value that comes out: written from that value, it parses to the same
// one.
func FuzzParseRequest(f *testing.F) {
	for _, file := range vectors.Load(f).Requests {
		for _, c := range file.Cases {
			f.Add(c.Subject, c.Message())
		}
	}
	for _, d := range drafts() {
		f.Add(d.Subject(), must(d.Sign(testKey(1))))
	}
	emergency := emergencyDraft()
	f.Add(emergency.Subject(), must(emergency.Sign(testKey(1))))
	f.Fuzz(func(t *testing.T, subject string, message []byte) {
		r, err := events.ParseRequest(subject, message)
		if err != nil {
			checkRefused(t, r, err)
			return
		}
		checkFixedPoint(t, r.Signed)
		if whole := must(events.Canonical(membersOf(t, message)["data"])); !bytes.Equal(r.Signed, whole) {
			t.Errorf("put together from its members, the canonical form is\n%s, and by the library\n%s", r.Signed, whole)
		}
		written := written(t, r)
		again, err := events.ParseRequest(subject, written)
		if err != nil {
			t.Fatalf("written again as %s: %v", written, err)
		}
		checkFixedPoint(t, again.Signed)
		// A service type that is there and empty is as good as none, but is signed.
		if bytes.Contains(r.Signed, []byte(`"service_type":""`)) {
			again.Signed = r.Signed
		}
		asCanonical := cmpopts.AcyclicTransformer("canonical", func(v jsontext.Value) string { return string(canonicalOrNil(t, v)) })
		if diff := cmp.Diff(r, again, exact, asCanonical); diff != "" {
			t.Errorf("written again, it is another request:\n%s", diff)
		}
	})
}

func checkRefused(t *testing.T, r *events.Request, err error) {
	t.Helper()
	switch reasonOf(err) {
	case events.MalformedMessage, events.UnsupportedVersion, events.InvalidField:
		if r == nil || r.Target == (events.Target{}) {
			t.Errorf("a refusal that nobody can be told of: %v", err)
		}
	default:
		if !errors.Is(err, events.ErrSubject) || r != nil {
			t.Errorf("neither a refusal of the parser's nor a subject that names nobody: %v, %v", r, err)
		}
	}
}

func checkFixedPoint(t *testing.T, canonical []byte) {
	t.Helper()
	again, err := events.Canonical(canonical)
	if err != nil || !bytes.Equal(again, canonical) {
		t.Errorf("the canonical form is not one:\n was %s\n now %s\n %v", canonical, again, err)
	}
}

func canonicalOrNil(t *testing.T, v jsontext.Value) []byte {
	t.Helper()
	if v == nil {
		return nil
	}
	return must(events.Canonical(v))
}

// written writes a request from nothing but the value that was parsed.
func written(t *testing.T, r *events.Request) []byte {
	t.Helper()
	data := map[string]any{"nonce": r.Nonce, "context": r.Kind}
	optional := func(name string, there bool, value any) {
		if there {
			data[name] = value
		}
	}
	optional("app_id", !r.App.IsZero(), r.App)
	optional("service_id", !r.Service.IsZero(), r.Service)
	optional("new_public_key", r.Kind == events.Rotation, r.NewKey)
	optional("public_key", r.Kind == events.Binding || r.Kind == events.Reset, r.NewKey)
	optional("rotation_timestamp", r.Kind == events.Rotation, r.Timestamp)
	optional("timestamp", r.Kind != events.Rotation, r.Timestamp)
	optional("grace_period", r.HasGracePeriod, r.GracePeriod)
	optional("end_earlier", r.EndEarlier, true)
	optional("origin", r.Origin != "", r.Origin)
	optional("service_type", r.ServiceType != "", r.ServiceType)
	optional("endpoint_url", r.EndpointURL != "", r.EndpointURL)
	optional("provider_receipt", r.ProviderReceipt != nil, r.ProviderReceipt)
	envelope := map[string]any{"version": "1.0", "data": data, "signature": r.Signature}
	if !r.Proof.IsZero() {
		envelope["new_key_signature"] = r.Proof
	}
	message, err := json.Marshal(envelope)
	if err != nil {
		t.Fatalf("a request that can't be written: %v", err)
	}
	return message
}

// FuzzInvalidation: nothing makes the parser panic; what is not signed is not believed, and spoils
// nothing for what stands beside it; and what is signed and read is wholly in the value that comes
// out.
func FuzzInvalidation(f *testing.F) {
	for _, file := range vectors.Load(f).Events {
		for _, c := range file.Events {
			f.Add(c.Subject, c.Message())
		}
	}
	for _, kind := range eventKinds {
		i := someInvalidation(kind)
		f.Add(i.Subject(), i.Sign(testKey(0)))
	}
	emergency := someEmergency()
	f.Add(emergency.Subject(), emergency.Sign(testKey(0)))
	stranger := must(events.NewTrust(origin, testKey(9).Public()))
	f.Fuzz(func(t *testing.T, subject string, message []byte) {
		if got, err := stranger.Invalidation(subject, message); err == nil {
			t.Fatalf("believed without a signature: %+v", got)
		}
		signed, ok := signedAnew(message)
		if !ok {
			return
		}
		good := someInvalidation(events.ServiceBinding)
		sameVerdicts(t, someTrust(), []events.Published{
			{Subject: subject, Payload: signed}, {Subject: subject, Payload: message}, {Subject: subject, Payload: signed},
			{Subject: good.Subject(), Payload: good.Sign(testKey(0))},
		})
		got, err := someTrust().Invalidation(subject, signed)
		if err != nil {
			if refusal := (*events.Refusal)(nil); !errors.As(err, &refusal) || refusal.Detail == "" {
				t.Errorf("not a refusal that tells why: %v", err)
			}
			return
		}
		if got.Subject() != subject {
			t.Errorf("an event of %s was read on %s", got.Subject(), subject)
		}
		again, err := someTrust().Invalidation(subject, got.Sign(testKey(0)))
		if err != nil {
			t.Fatalf("written again: %v", err)
		}
		if diff := cmp.Diff(got, again, exact); diff != "" {
			t.Errorf("written again, it is another event:\n%s", diff)
		}
	})
}

// signedAnew puts a signature that counts on whatever the fuzzer made, so that it gets past the
// first door.
func signedAnew(message []byte) ([]byte, bool) {
	var members map[string]jsontext.Value
	if json.Unmarshal(message, &members) != nil || members == nil {
		return nil, false
	}
	canonical, err := events.Canonical(members["data"])
	if err != nil {
		return nil, false
	}
	members["signature"] = must(json.Marshal(testKey(0).Sign(canonical)))
	signed, err := json.Marshal(members)
	return signed, err == nil
}

// FuzzCanonical: a canonical form is its own, says what the text says, and is what another
// implementation of RFC 8785 makes of the text.
func FuzzCanonical(f *testing.F) {
	set := vectors.Load(f)
	for _, file := range set.Canonical {
		for _, c := range file.Cases {
			f.Add([]byte(c.Input))
			f.Add([]byte(c.Canonical))
		}
	}
	for _, file := range set.Requests {
		for _, c := range file.Cases {
			f.Add(c.Message())
		}
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		before := bytes.Clone(value)
		canonical, err := events.Canonical(value)
		if !bytes.Equal(before, value) {
			t.Fatal("Canonical changed what it was given")
		}
		theirs, theirErr := jcs.Transform(value)
		if err != nil {
			if theirErr == nil {
				t.Errorf("%s: %v, and another implementation makes %s of it", value, err, theirs)
			}
			return
		}
		if theirErr != nil {
			t.Errorf("%s became %s, and another implementation refuses it: %v", value, canonical, theirErr)
		} else if !bytes.Equal(canonical, theirs) {
			t.Errorf("%s became\n%s, and by another implementation\n%s", value, canonical, theirs)
		}
		checkFixedPoint(t, canonical)
		var want, got any
		if err := errors.Join(json.Unmarshal(value, &want), json.Unmarshal(canonical, &got)); err != nil || !cmp.Equal(want, got) {
			t.Errorf("%s became %s: %v", value, canonical, err)
		}
	})
}

// FuzzCanonicalNumber: every binary64, however it is written, becomes what ECMAScript prints for
// it.
func FuzzCanonicalNumber(f *testing.F) {
	for _, n := range []float64{0, math.Copysign(0, -1), 1e21, 1e-7, 333333333.33333329, 5e-324, math.MaxFloat64, 1 << 53} {
		f.Add(math.Float64bits(n), byte('g'), 17)
	}
	f.Fuzz(func(t *testing.T, bits uint64, form byte, digits int) {
		n := math.Float64frombits(bits)
		want, err := jcs.NumberToJSON(n)
		if err != nil {
			return // NaN or an infinity: no text says that
		}
		form = "efg"[form%3]
		if digits < 17 || digits > 40 {
			digits = -1 // the shortest that is still this number
		}
		if form == 'f' && digits > 0 {
			digits = 1100 // enough behind the point for any
		}
		text := strconv.FormatFloat(n, form, digits, 64)
		if got, err := events.Canonical([]byte(text)); err != nil || string(got) != want {
			t.Errorf("%s became %s, %v; want %s", text, got, err, want)
		}
	})
}
