package registry

import (
	"net/http"
	"testing"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/api/apitest"
)

// TestNeverBound: that a service was never bound is signed by the registry, whichever way it is asked. Strangers who ask about
// invented names cost it so many signatures and no more; what they are answered then is not signed.
func TestNeverBound(t *testing.T) {
	t.Parallel()
	d := openLookups(t)
	target, err := events.ParseTarget(d.target.App.String() + ".nobody")
	if err != nil {
		t.Fatal(err)
	}
	path := "/v1/apps/" + target.App.String() + "/services/" + target.Service.String()
	statement := func(how string, a apitest.Answer, ok bool) []byte {
		var p api.Problem
		if err := json.Unmarshal(a.Body, &p); !ok || err != nil || a.Status != http.StatusNotFound || p.Reason != string(events.UnknownService) {
			t.Fatalf("%s: %d %s (%v)", how, a.Status, a.Body, err)
		}
		return p.Statement
	}
	const service, history = 0, 1
	signed := 0
	for how, ask := range map[string]func() (apitest.Answer, bool){
		"record over NATS":  func() (apitest.Answer, bool) { return d.NATS(t, service, target.String(), nil) },
		"history over NATS": func() (apitest.Answer, bool) { return d.NATS(t, history, target.String(), nil) },
		"record over HTTP":  func() (apitest.Answer, bool) { return d.HTTP(t, http.MethodGet, path, "", nil) },
		"JWK Set over HTTP": func() (apitest.Answer, bool) { return d.HTTP(t, http.MethodGet, path+"/jwks.json", "", nil) },
	} {
		a, ok := ask()
		if err := d.trust.Unbound(target, statement(how, a, ok), testNow); err != nil {
			t.Errorf("%s: %s: %v", how, a.Body, err)
		}
		signed++
	}
	for range unboundBurst + 100 {
		a, ok := d.HTTP(t, http.MethodGet, path, "", nil)
		if len(statement("a flood", a, ok)) > 0 {
			signed++
		}
	}
	if signed != unboundBurst {
		t.Errorf("%d answers were signed in one moment, want %d", signed, unboundBurst)
	}
}
