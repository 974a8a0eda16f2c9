package events_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
)

func someRecord() events.ServiceRecord {
	return events.ServiceRecord{
		Origin: origin, AppID: someTarget().App, ServiceID: someTarget().Service, Record: "SERVICE",
		Status: events.Active, Sequence: 3, BoundAt: now - 600,
		Current:     events.CurrentKey{PublicKey: testKey(2).Public(), Since: now},
		Grace:       []events.GraceKey{{PublicKey: testKey(1).Public(), Expires: now + 300}},
		Propagation: map[string]bool{"authsub": true}, Timestamp: now + 1,
	}
}

func someHistory() events.ServiceHistory {
	until := now + 300
	return events.ServiceHistory{
		Origin: origin, AppID: someTarget().App, ServiceID: someTarget().Service, Record: "HISTORY", Sequence: 2,
		Keys: []events.HistoryKey{
			{PublicKey: testKey(1).Public(), Event: events.ServiceBinding, Sequence: 1, From: now - 600, Until: &until},
			{PublicKey: testKey(2).Public(), Event: events.KeyRotation, Sequence: 2, From: now},
		},
		Timestamp: now + 1,
	}
}

func TestServiceRecord(t *testing.T) {
	t.Parallel()
	revoked := someRecord()
	revoked.Status, revoked.Current, revoked.Grace = events.Revoked, events.CurrentKey{}, []events.GraceKey{}
	revoked.ProviderReceipt = jsontext.Value(`{"kept":[1.50,"as it came"]}`)
	full := someRecord()
	full.ServiceType, full.EndpointURL, full.NextRotationAt = "cms-article", "https://i77.article.cms.io/api/v1", now+60
	for name, want := range map[string]events.ServiceRecord{"active": someRecord(), "revoked": revoked, "full": full} {
		got, err := someTrust().ServiceRecord(someTarget(), want.Sign(testKey(0)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got, exact); diff != "" {
			t.Errorf("%s: what is read differs from what was signed:\n%s", name, diff)
		}
	}
}

func TestServiceHistory(t *testing.T) {
	t.Parallel()
	want := someHistory()
	got, err := someTrust().ServiceHistory(someTarget(), want.Sign(testKey(0)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, exact); diff != "" {
		t.Errorf("what is read differs from what was signed:\n%s", diff)
	}
}

// TestDocumentOrder: the shapes that docs/protocol.md §8.1 and §8.4 print.
func TestDocumentOrder(t *testing.T) {
	t.Parallel()
	head := `{"origin":"omiappreg.org","app_id":"` + appText + `","service_id":"cms-article-77",`
	first, second := testKey(1).Public().String(), testKey(2).Public().String()
	empty := someRecord()
	empty.Status, empty.Current, empty.Grace, empty.Propagation = events.Revoked, events.CurrentKey{}, nil, nil
	for data, got := range map[string][]byte{
		head + `"record":"SERVICE","status":"active","sequence":3,"bound_at":1705412000,` +
			`"current":{"public_key":"` + second + `","since":1705412600},` +
			`"grace":[{"public_key":"` + first + `","expires":1705412900}],` +
			`"propagation":{"authsub":true},"timestamp":1705412601}`: someRecord().Sign(testKey(0)),
		head + `"record":"SERVICE","status":"revoked","sequence":3,"bound_at":1705412000,` +
			`"grace":[],"propagation":{},"timestamp":1705412601}`: empty.Sign(testKey(0)),
		head + `"record":"HISTORY","sequence":2,"keys":[` +
			`{"public_key":"` + first + `","event":"SERVICE_BINDING","sequence":1,"from":1705412000,"until":1705412900},` +
			`{"public_key":"` + second + `","event":"KEY_ROTATION","sequence":2,"from":1705412600}],` +
			`"timestamp":1705412601}`: someHistory().Sign(testKey(0)),
	} {
		want := fmt.Sprintf(`{"version":"1.0","data":%s,"signature":"%s","key_id":"%s"}`,
			data, testKey(0).Sign(must(events.Canonical([]byte(data)))), testKey(0).Public().KeyID())
		if string(got) != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	}
}

// TestDocumentsThatNobodyBelieves: each is refused for its own reason, whichever of the two is
// asked for.
func TestDocumentsThatNobodyBelieves(t *testing.T) {
	t.Parallel()
	record, history := string(someRecord().Sign(testKey(0))), string(someHistory().Sign(testKey(0)))
	for name, tc := range map[string]struct {
		change func(document string) []byte
		want   events.Reason
	}{
		"empty":            {func(string) []byte { return nil }, events.MalformedMessage},
		"cut":              {func(s string) []byte { return []byte(s[:len(s)-1]) }, events.MalformedMessage},
		"too large":        {func(s string) []byte { return []byte(s + strings.Repeat(" ", events.MaxDocument)) }, events.MalformedMessage},
		"twice":            {func(s string) []byte { return []byte(s + s) }, events.MalformedMessage},
		"duplicate":        {func(s string) []byte { return []byte(strings.Replace(s, `"sequence"`, `"origin":"x","sequence"`, 1)) }, events.MalformedMessage},
		"version":          {func(s string) []byte { return withMember(t, []byte(s), "version", "2.0") }, events.UnsupportedVersion},
		"no signature":     {func(s string) []byte { return withMember(t, []byte(s), "signature", nil) }, events.UntrustedSignature},
		"short signature":  {func(s string) []byte { return withMember(t, []byte(s), "signature", "x") }, events.MalformedMessage},
		"changed":          {func(s string) []byte { return []byte(strings.Replace(s, `"timestamp":17`, `"timestamp":18`, 1)) }, events.UntrustedSignature},
		"another registry": {func(s string) []byte { return resigned(t, strings.Replace(s, origin+`"`, `elsewhere.example"`, 1)) }, events.WrongOrigin},
		"another service":  {func(s string) []byte { return resigned(t, strings.Replace(s, `article-77`, `article-78`, 1)) }, events.TargetMismatch},
		"another record": {func(s string) []byte {
			return resigned(t, strings.NewReplacer(`"SERVICE"`, `"X"`, `"HISTORY"`, `"X"`).Replace(s))
		}, events.InvalidField},
		"a member's type": {func(s string) []byte {
			return resigned(t, strings.Replace(s, `"timestamp":17`, `"timestamp":"17","x":17`, 1))
		}, events.InvalidField},
		"a key's form": {func(s string) []byte { return resigned(t, strings.Replace(s, `"ed25519:`, `"ed448:`, 1)) }, events.InvalidField},
		// §3's rules, but for the limits of size and depth, hold for documents too.
		"null": {func(s string) []byte {
			return resigned(t, strings.Replace(s, `"timestamp":1705412601`, `"timestamp":null`, 1))
		}, events.InvalidField},
		"null for a list": {func(s string) []byte {
			return resigned(t, strings.NewReplacer(`"propagation":{"authsub":true}`, `"propagation":null`, `"until":1705412900`, `"until":null`).Replace(s))
		}, events.InvalidField},
		"negative": {func(s string) []byte {
			return resigned(t, strings.Replace(s, `"timestamp":1705412601`, `"timestamp":-1`, 1))
		}, events.InvalidField},
		"minus zero": {func(s string) []byte {
			return resigned(t, strings.Replace(s, `"timestamp":1705412601`, `"timestamp":-0`, 1))
		}, events.InvalidField},
		"beyond I-JSON": {func(s string) []byte {
			return resigned(t, strings.Replace(s, `"timestamp":1705412601`, `"timestamp":9007199254740992`, 1))
		}, events.InvalidField},
		"beyond I-JSON, of no interest": {func(s string) []byte {
			return resigned(t, strings.Replace(s, `"sequence"`, `"later":[-9007199254740992],"sequence"`, 1))
		}, events.InvalidField},
		"noncharacter": {func(s string) []byte {
			return resigned(t, strings.Replace(s, `"sequence"`, `"later":["\ufdd0"],"sequence"`, 1))
		}, events.MalformedMessage},
		"no data": {func(s string) []byte { return withMember(t, []byte(s), "data", nil) }, events.MalformedMessage},
	} {
		if _, err := someTrust().ServiceRecord(someTarget(), tc.change(record)); reasonOf(err) != tc.want {
			t.Errorf("record, %s: got %v, want %s", name, err, tc.want)
		}
		if _, err := someTrust().ServiceHistory(someTarget(), tc.change(history)); reasonOf(err) != tc.want {
			t.Errorf("history, %s: got %v, want %s", name, err, tc.want)
		}
	}
	if _, err := someTrust().ServiceRecord(someTarget(), []byte(history)); reasonOf(err) != events.InvalidField {
		t.Errorf("a history for a record: %v", err)
	}
	if _, err := someTrust().ServiceHistory(someTarget(), []byte(record)); reasonOf(err) != events.InvalidField {
		t.Errorf("a record for a history: %v", err)
	}
	i := someInvalidation(events.KeyRotation)
	if _, err := someTrust().ServiceRecord(someTarget(), i.Sign(testKey(0))); reasonOf(err) != events.InvalidField {
		t.Errorf("an event for a record: %v", err)
	}
}

// TestRecordBeyondAMessage: a document may be longer and more deeply nested than a message, as it
// answers our own question.
func TestRecordBeyondAMessage(t *testing.T) {
	t.Parallel()
	h := someHistory()
	for range 200 {
		h.Keys = append(h.Keys, h.Keys[0])
	}
	document := h.Sign(testKey(0))
	if got, err := someTrust().ServiceHistory(someTarget(), document); err != nil || len(got.Keys) != 202 || len(document) < events.MaxMessage {
		t.Errorf("a history of %d bytes: %d keys, %v", len(document), len(got.Keys), err)
	}
}
