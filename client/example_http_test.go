package client_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// cms signs as a service with a key in memory. In a real service client.Open's Signer takes its place: it survives
// rotations.
type cms struct{ ed25519.PrivateKey }

func (cms) Target() events.Target {
	t, err := events.ParseTarget("org.omiappreg.alice.business_app.7f8a9d.cms-article-77")
	if err != nil {
		panic(err)
	}
	return t
}

// oneKey knows one service, by one key. In a real service an AuthVerifier takes its place.
type oneKey struct{ public crypto.PublicKey }

func (k oneKey) Verify(_ context.Context, q events.VerifyQuery) (events.VerifyAnswer, error) {
	key, err := events.PublicKeyFromBytes(k.public.(ed25519.PublicKey))
	if err != nil {
		return events.VerifyAnswer{}, err
	}
	if !key.Verify(q.Message, q.Signature) {
		return events.VerifyAnswer{Result: events.Refused, Reason: string(events.InvalidSignature)}, nil
	}
	return events.VerifyAnswer{Result: events.Accepted, Key: events.KeyCurrent}, nil
}

// A service that signs its requests, and one that answers only those.
func ExampleTransport() {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}

	// Billing answers whoever the registry knows.
	guard := client.NewGuard(client.GuardConfig{Checker: oneKey{private.Public()}})
	usage := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := client.CallerFrom(r.Context())
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s used %s", caller.Target.Service, body)
	})
	billing := httptest.NewUnstartedServer(nil)
	billing.Config.Handler = guard.RequireSignature(billing.Listener.Addr().String())(usage)
	billing.Start()
	defer billing.Close()

	// The service calls it as it calls anybody.
	signing := &http.Client{Transport: &client.Transport{Signer: cms{private}}}
	for _, c := range []*http.Client{signing, http.DefaultClient} {
		response, err := c.Post(billing.URL+"/v1/usage", "text/plain", strings.NewReader("3 lines"))
		if err != nil {
			panic(err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		fmt.Println(response.StatusCode, string(body))
	}
	// Output:
	// 200 cms-article-77 used 3 lines
	// 401 {"title":"Unauthorized","status":401,"detail":"It carries no signature: it needs the fields Signature-Input and Signature.","reason":"unsigned"}
}
