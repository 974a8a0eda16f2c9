package registry

import (
	"bytes"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api/apitest"
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/testenv"
)

// lookupDoor is the lookups of a registry with one service of a few keys and one that is revoked, at testNow.
type lookupDoor struct {
	*apitest.Door
	trust   events.Trust
	target  events.Target
	revoked events.Target
	nonce   events.Nonce // of a request of the first
}

func openLookups(f testing.TB) *lookupDoor {
	f.Helper()
	store := openStore(f, testenv.Database(f, testenv.SQLite))
	now := func() time.Time { return time.Unix(testNow, 0) }
	d := newDeveloper(f, store, "org.omiappreg.alice.business_app.7f8a9d", "cms-article-77")
	d.now = now
	gone := d.another("gone")
	in := newTestIntake(f, store, Policy{Origin: testOrigin}, now)
	requests := []request{d.bind(), d.rotate(), d.rotate(), gone.bind(), gone.revoke()}
	if _, err := decideAndCommit(f.Context(), in, incomingOf(requests)); err != nil {
		f.Fatal(err)
	}
	conn := apitest.Connect(f)
	js, err := jetstream.New(conn)
	if err != nil {
		f.Fatal(err)
	}
	if err := EnsureStreams(f.Context(), js, 1); err != nil {
		f.Fatal(err)
	}
	r, err := New(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store, Conn: conn, Now: now, Log: testLog(f)})
	if err != nil {
		f.Fatal(err)
	}
	if err := r.guard.Compare(f.Context()); err != nil { // before that, it answers nothing
		f.Fatal(err)
	}
	trust, err := events.NewTrust(testOrigin, testKey.Public())
	if err != nil {
		f.Fatal(err)
	}
	return &lookupDoor{apitest.Open(f, conn, r.Lookup.endpoints()...), trust, d.target, gone.target, requests[0].draft.Nonce}
}

// check reads an answer back: it is one of the five, about one of the two services.
func (d *lookupDoor) check(t *testing.T, asked string, a apitest.Answer) {
	t.Helper()
	if a.Status != http.StatusOK {
		return
	}
	for _, target := range []events.Target{d.target, d.revoked} {
		if r, err := d.trust.ServiceRecord(target, a.Body); err == nil && len(r.Grace) <= 2 {
			return
		}
		if h, err := d.trust.ServiceHistory(target, a.Body); err == nil && h.Sequence > 0 {
			return
		}
		if _, err := d.trust.Receipt(events.ReceiptSubject+target.String(), a.Body); err == nil {
			return
		}
	}
	if _, err := events.ParseRegistryInfo(a.Body); err == nil || bytes.Contains(a.Body, []byte(`"record":"KEY"`)) {
		return
	}
	var set struct {
		Keys []keyformat.JSONWebKey `json:"keys"`
	}
	if err := json.Unmarshal(a.Body, &set, json.RejectUnknownMembers(true)); err != nil || set.Keys == nil {
		t.Errorf("%q: %s", asked, a.Body)
	}
}

// FuzzLookupHTTP: whatever is asked of the registry over HTTP, it answers as documented, or with a problem document that
// blames whoever asked.
func FuzzLookupHTTP(f *testing.F) {
	d := openLookups(f)
	service := "/v1/apps/" + d.target.App.String() + "/services/" + d.target.Service.String()
	for _, target := range []string{
		service, service + "/history", service + "/jwks.json", "/v1/registry", service + "/", service + "/jwks", service + "?x=%zz", "*",
		service + "/history?after=0", service + "/history?after=1&limit=1", service + "/history?after=-1", service + "/history?limit=0", service + "/history?after=%22",
		"/v1/apps/" + d.revoked.App.String() + "/services/gone", "/v1/apps/%2e%2e/services/a%2fb", "//v1/registry", "/v1/../v1/registry", "/",
		"http://elsewhere.example/v1/registry", "/v1/apps/A/services/b", "/v1/apps//services/", "/v1/apps/%00.a/services/%ff", "/metrics", "/healthz", "/readyz?json", "/livez",
	} {
		f.Add("GET", target, "Accept: */*", []byte(nil))
	}
	f.Add("POST", service, "", []byte("{}"))
	f.Add("HEAD", service+"/history", "", []byte(nil))
	f.Add("CONNECT", "a:1", "", []byte(nil))
	f.Add("OPTIONS", "*", "", []byte(nil))
	f.Add("GET", "/v1/registry", "If-None-Match: *\r\nRange: bytes=0-1", make([]byte, events.MaxQuery+1))
	f.Add("GET", "/v1/registry", "If-None-Match: W/\"a\", *", []byte(nil))
	f.Fuzz(func(t *testing.T, method, target, header string, body []byte) {
		if a, ok := d.HTTP(t, method, target, header, body); ok && !apitest.OfTheProcess(target) && a.Status == http.StatusOK {
			d.check(t, method+" "+target, a)
		}
	})
}

// FuzzLookupNATS: the same over NATS; and of a service that can be named in both ways, both say the same, but for a receipt, which is
// not told over HTTP.
func FuzzLookupNATS(f *testing.F) {
	d := openLookups(f)
	for endpoint := range uint8(5) {
		for _, tail := range []string{d.target.String(), d.revoked.String(), "a", "a.b", "a.b.c", "A.b.c", "*.b.c", ">", "é.b.c"} {
			f.Add(endpoint, tail, []byte(nil))
		}
	}
	for _, payload := range []string{"{}", `{"after":0}`, `{"after":1}`, `{"after":-1}`, `{"before":1}`, `{"limit":1}`, `{"limit":0}`, `{"after":0,"limit":9007199254740992}`} {
		f.Add(uint8(1), d.target.String(), []byte(payload))
	}
	f.Add(uint8(0), d.target.String(), []byte("{}"))
	f.Add(uint8(4), "", events.KeyQuery(testKey.Public()))
	f.Add(uint8(4), "", []byte(`{"public_key":"ed25519:AA"}`))
	for _, nonce := range []string{d.nonce.String(), "neverSent", "x", `n","a":"`} {
		f.Add(uint8(3), d.target.String(), []byte(`{"request_nonce":"`+nonce+`"}`))
	}
	f.Add(uint8(3), d.target.String(), events.ReceiptQuery{RequestNonce: d.nonce, RequestHash: events.RequestHash(nil)}.Encode())
	f.Fuzz(func(t *testing.T, endpoint uint8, tail string, payload []byte) {
		a, ok := d.NATS(t, endpoint, tail, payload)
		if !ok {
			return
		}
		d.check(t, tail, a)
		target, err := events.ParseTarget(tail)
		if q, bad := events.ParseHistoryQuery(payload); endpoint%5 == 1 && (q.Part || bad != nil) {
			if wrong := bad != nil || err != nil; wrong != (a.Status == http.StatusBadRequest) {
				t.Errorf("%q is asked %q: %d", tail, payload, a.Status)
			}
			return
		}
		if endpoint%5 == 4 {
			if _, bad := events.ParseKeyQuery(payload); (bad != nil) != (a.Status == http.StatusBadRequest) {
				t.Errorf("asked about the key %q: %d", payload, a.Status)
			}
			return
		}
		if endpoint%5 == 3 {
			q, bad := events.ParseReceiptQuery(payload)
			wrong, known := bad != nil || err != nil, target == d.target && q.RequestNonce == d.nonce
			if wrong != (a.Status == http.StatusBadRequest) || !wrong && known != (a.Status == http.StatusOK) {
				t.Errorf("%q is asked %q: %d", tail, payload, a.Status)
			}
			return
		}
		if err != nil {
			if endpoint%5 < 2 && a.Status != http.StatusBadRequest {
				t.Errorf("%q: %d, and it names no service", tail, a.Status)
			}
			return
		}
		if known := target == d.target || target == d.revoked; endpoint%5 < 2 && known != (a.Status == http.StatusOK) {
			t.Errorf("%q: %d", tail, a.Status)
		}
		path := "/v1/apps/" + url.PathEscape(target.App.String()) + "/services/" + target.Service.String()
		path = []string{path, path + "/history", "/v1/registry"}[endpoint%5]
		if b, ok := d.HTTP(t, http.MethodGet, path, "", nil); !ok || a.Status != b.Status || !bytes.Equal(a.Body, b.Body) {
			t.Errorf("%q: over NATS %d %s\nover HTTP %d %s", tail, a.Status, a.Body, b.Status, b.Body)
		}
	})
}
