package events_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"omiappreg.org/keyrotation/events"
)

// alike compares what was parsed with what its own text parses to. A JSON object that is passed on
// may be spelt anew.
var alike = cmp.Options{
	exact, cmpopts.EquateEmpty(),
	cmp.FilterPath(func(p cmp.Path) bool { return p.Last().Type() == reflect.TypeFor[jsontext.Value]() },
		cmp.FilterValues(func(a, b jsontext.Value) bool { return len(a) > 0 && len(b) > 0 },
			cmpopts.AcyclicTransformer("canonical", func(v jsontext.Value) string { return string(must(events.Canonical(v))) }))),
}

// checkRefusal holds an error against what the parsers promise.
func checkRefusal(t *testing.T, err error) {
	t.Helper()
	if refusal := (*events.Refusal)(nil); !errors.As(err, &refusal) || refusal.Detail == "" {
		t.Errorf("not a refusal that tells why: %v", err)
	}
}

// checkAgain parses what a value was written as, and wants the same value.
func checkAgain[T any](t *testing.T, got T, text []byte, parse func([]byte) (T, error)) {
	t.Helper()
	again, err := parse(text)
	if err != nil {
		t.Fatalf("written as %s, it is refused: %v", text, err)
	}
	if diff := cmp.Diff(got, again, alike); diff != "" {
		t.Errorf("written as %s, it is another:\n%s", text, diff)
	}
}

// FuzzReceipt: what is not signed is not believed, and what is signed and read is wholly in the
// value that comes out.
func FuzzReceipt(f *testing.F) {
	for _, r := range []events.Receipt{someReceipt(events.RequestCommitted), someReceipt(events.RequestRejected)} {
		f.Add(r.Subject(), r.Sign(testKey(0)))
	}
	stranger := must(events.NewTrust(origin, testKey(9).Public()))
	f.Fuzz(func(t *testing.T, subject string, message []byte) {
		if got, err := stranger.Receipt(subject, message); err == nil {
			t.Fatalf("believed without a signature: %+v", got)
		}
		signed, ok := signedAnew(message)
		if !ok {
			return
		}
		got, err := someTrust().Receipt(subject, signed)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		if got.Subject() != subject {
			t.Errorf("a receipt of %s was read on %s", got.Subject(), subject)
		}
		checkAgain(t, got, got.Sign(testKey(0)), func(b []byte) (events.Receipt, error) { return someTrust().Receipt(subject, b) })
	})
}

func someReceipt(kind events.ReceiptKind) events.Receipt {
	r := events.Receipt{Origin: origin, Target: someTarget(), Event: kind, RequestNonce: someNonce(), Timestamp: now, Nonce: someNonce()}
	if kind == events.RequestCommitted {
		r.Sequence, r.PublicKey, r.GracePeriodExpiry, r.EventNonce = 2, testKey(2).Public(), now+300, someNonce()
		return r
	}
	r.Reason, r.Detail, r.RequestHash = events.WeakKey, "A sentence.", events.RequestHash([]byte("{}"))
	return r
}

// FuzzDocuments: the two signed answers of §8, read by someone who asked about the service that
// they name.
func FuzzDocuments(f *testing.F) {
	f.Add(someRecord().Sign(testKey(0)))
	f.Add(someHistory().Sign(testKey(0)))
	revoked := someRecord()
	revoked.Status, revoked.Current, revoked.ServiceType = events.Revoked, events.CurrentKey{}, "cms-article"
	revoked.ProviderReceipt = jsontext.Value(`{"kept":[1.50,"as it came",null]}`)
	f.Add(revoked.Sign(testKey(0)))
	stranger := must(events.NewTrust(origin, testKey(9).Public()))
	f.Fuzz(func(t *testing.T, document []byte) {
		_, recordErr := stranger.ServiceRecord(someTarget(), document)
		_, historyErr := stranger.ServiceHistory(someTarget(), document)
		checkRefusal(t, recordErr)
		checkRefusal(t, historyErr)
		signed, ok := signedAnew(document)
		if !ok {
			return
		}
		record := func(b []byte) (events.ServiceRecord, error) { return someTrust().ServiceRecord(someTarget(), b) }
		if got, err := record(signed); err == nil {
			checkAgain(t, got, got.Sign(testKey(0)), record)
		} else {
			checkRefusal(t, err)
		}
		history := func(b []byte) (events.ServiceHistory, error) { return someTrust().ServiceHistory(someTarget(), b) }
		if got, err := history(signed); err == nil {
			checkAgain(t, got, got.Sign(testKey(0)), history)
		} else {
			checkRefusal(t, err)
		}
	})
}

// FuzzRegistryInfo: what nobody signs is still of its form.
func FuzzRegistryInfo(f *testing.F) {
	f.Add(must(json.Marshal(events.RegistryInfo{
		Origin: origin, PublicKeys: []events.PublicKey{testKey(0).Public()}, GracePeriod: 300, MaxClockSkew: 300, RequireProof: events.ProofsAll,
	})))
	f.Fuzz(func(t *testing.T, answer []byte) {
		got, err := events.ParseRegistryInfo(answer)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		checkAgain(t, got, must(json.Marshal(got)), events.ParseRegistryInfo)
	})
}

// FuzzQueries: the questions of §8.2 and §8.3, and Auth's answer.
func FuzzQueries(f *testing.F) {
	key := testKey(1).Public()
	f.Add(must(events.VerifyQuery{Target: someTarget(), Message: []byte("hello"), Signature: testKey(1).Sign(nil)}.Encode()))
	f.Add([]byte(`{"public_key":"` + key.String() + `","at":1705412650}`))
	f.Add(must(json.Marshal(events.VerifyAnswer{Result: events.Accepted, Key: events.KeyGrace, PublicKey: key, Expires: now, Sequence: 3, AsOf: now})))
	f.Add(must(json.Marshal(events.VerifyAnswer{Result: events.Refused, Reason: events.ExpiredKey, AsOf: now})))
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		if q, err := events.ParseVerifyQuery(text); err == nil {
			checkAgain(t, q, must(q.Encode()), events.ParseVerifyQuery)
		} else {
			checkRefusal(t, err)
		}
		if q, err := events.ParseAttributeQuery(text); err == nil {
			again := fmt.Appendf(nil, `{"at":%d,"public_key":%q}`, q.At, q.PublicKey)
			checkAgain(t, q, again, events.ParseAttributeQuery)
		} else {
			checkRefusal(t, err)
		}
		if a, err := events.ParseVerifyAnswer(text); err == nil {
			checkAgain(t, a, must(json.Marshal(a)), events.ParseVerifyAnswer)
		} else {
			checkRefusal(t, err)
		}
		if events.SequenceOf(text) < 0 || !bytes.Equal(before, text) {
			t.Error("a sequence below 0, or the bytes were changed")
		}
	})
}
