package events_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

// drafts are the four requests, each with every option that it can have.
func drafts() map[events.RequestKind]events.Draft {
	grace := int64(300)
	list := map[events.RequestKind]events.Draft{
		events.Rotation: {NewKey: testKey(2), GracePeriod: &grace},
		events.Binding:  {NewKey: testKey(2), ServiceType: "cms-article", EndpointURL: "https://i77.article.cms.io/api/v1"},
		events.Reset:    {NewKey: testKey(2), ServiceType: "cms-article", EndpointURL: "https://i77.article.cms.io/api/v1"},
		events.Revocation: {
			ProviderReceipt: jsontext.Value(`{"kept":[1.50,"as it came"]}`),
		},
	}
	for kind, d := range list {
		d.Kind, d.Target, d.Timestamp, d.Nonce, d.Origin = kind, someTarget(), now, someNonce(), origin
		list[kind] = d
	}
	return list
}

// TestDraft: what a draft says is what the registry reads, and the signatures are over what it
// reads.
func TestDraft(t *testing.T) {
	t.Parallel()
	by := testKey(1)
	for kind, d := range drafts() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			message, err := d.Sign(by)
			if err != nil {
				t.Fatal(err)
			}
			r, err := events.ParseRequest(d.Subject(), message)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(d, draftOf(r, d.NewKey), exact); diff != "" {
				t.Errorf("the request differs from its draft:\n%s", diff)
			}
			if !r.NamesItsTarget() || r.App != d.Target.App || r.Service != d.Target.Service {
				t.Errorf("the request names %v and %v", r.App, r.Service)
			}
			if !by.Public().Verify(r.Signed, r.Signature) {
				t.Error("the signature does not verify")
			}
			if r.Proof.IsZero() != d.NewKey.IsZero() || r.NewKey.IsZero() != d.NewKey.IsZero() {
				t.Errorf("new key %v, proof %v", r.NewKey, r.Proof)
			}
			if !r.Proof.IsZero() && !r.NewKey.Verify(r.Signed, r.Proof) {
				t.Error("the proof does not verify")
			}
			if want := d.Subject() + "/" + someHash; d.MsgID() != want {
				t.Errorf("message id %q, want %q", d.MsgID(), want)
			}
		})
	}
}

// TestDraftOrder: members come in the order in which the contract prints them (docs/protocol.md
// §5). Nobody depends on it but the people who read messages.
func TestDraftOrder(t *testing.T) {
	t.Parallel()
	target := `"app_id":"` + appText + `","service_id":"cms-article-77"`
	newKey, named := testKey(2).Public().String(), `,"origin":"`+origin+`"`
	options := `,"service_type":"cms-article","endpoint_url":"https://i77.article.cms.io/api/v1"` + named
	data := map[events.RequestKind]string{
		events.Rotation: `"new_public_key":"` + newKey + `","rotation_timestamp":1705412600,"nonce":"` + someHash +
			`","context":"key_rotation",` + target + `,"grace_period":300` + named,
		events.Binding: target + `,"public_key":"` + newKey + `","timestamp":1705412600,"nonce":"` + someHash +
			`","context":"service_binding"` + options,
		events.Reset: target + `,"public_key":"` + newKey + `","timestamp":1705412600,"nonce":"` + someHash +
			`","context":"master_reset"` + options,
		events.Revocation: target + `,"timestamp":1705412600,"nonce":"` + someHash +
			`","context":"decommission","provider_receipt":{"kept":[1.50,"as it came"]}` + named,
	}
	for kind, d := range drafts() {
		canonical := must(events.Canonical([]byte("{" + data[kind] + "}")))
		want := fmt.Sprintf(`{"version":"1.0","data":{%s},"signature":"%s"`, data[kind], testKey(1).Sign(canonical))
		if !d.NewKey.IsZero() {
			want += fmt.Sprintf(`,"new_key_signature":"%s"`, d.NewKey.Sign(canonical))
		}
		if got, err := d.Sign(testKey(1)); err != nil || string(got) != want+"}" {
			t.Errorf("%s: %v\n got %s\nwant %s", kind, err, got, want+"}")
		}
	}
}

// TestDraftThatNobodyWouldTake: a draft says why before it is sent.
func TestDraftThatNobodyWouldTake(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		kind   events.RequestKind
		change func(*events.Draft)
	}{
		"no-kind":                 {events.Binding, func(d *events.Draft) { d.Kind = "" }},
		"no-target":               {events.Rotation, func(d *events.Draft) { d.Target = events.Target{} }},
		"no-nonce":                {events.Rotation, func(d *events.Draft) { d.Nonce = events.Nonce{} }},
		"rotation-to-no-key":      {events.Rotation, func(d *events.Draft) { d.NewKey = events.SigningKey{} }},
		"binding-of-no-key":       {events.Binding, func(d *events.Draft) { d.NewKey = events.SigningKey{} }},
		"revocation-with-key":     {events.Revocation, func(d *events.Draft) { d.NewKey = testKey(2) }},
		"negative-grace":          {events.Rotation, func(d *events.Draft) { n := int64(-1); d.GracePeriod = &n }},
		"negative-time":           {events.Rotation, func(d *events.Draft) { d.Timestamp = -1 }},
		"relative-url":            {events.Binding, func(d *events.Draft) { d.EndpointURL = "/api" }},
		"receipt-is-no-object":    {events.Revocation, func(d *events.Draft) { d.ProviderReceipt = jsontext.Value(`[1]`) }},
		"receipt-is-no-JSON":      {events.Revocation, func(d *events.Draft) { d.ProviderReceipt = jsontext.Value(`{`) }},
		"receipt-is-much-too-big": {events.Revocation, func(d *events.Draft) { d.ProviderReceipt = objectOf(events.MaxMessage) }},
	} {
		d := drafts()[tc.kind]
		tc.change(&d)
		if message, err := d.Sign(testKey(1)); err == nil {
			t.Errorf("%s: signed %s", name, message)
		}
	}
}

// objectOf returns a JSON object of n bytes.
func objectOf(n int) jsontext.Value {
	const frame = `{"a":""}`
	return jsontext.Value(fmt.Sprintf(`{"a":"%0*d"}`, n-len(frame), 0))
}

// TestVectorsAreWhatWeSend: our own messages are the vectors' to the byte, where the same thing is
// said.
func TestVectorsAreWhatWeSend(t *testing.T) {
	t.Parallel()
	set := vectors.Load(t)
	registry := vectorKey(t, set, "registry")
	signers := map[string][2]string{ // of requests: who asks, and for which key
		"bound-with-proof": {"svc-2", "new-proof"},
		"bind-full":        {"master", "bind-full"},
	}
	again := map[string]bool{
		"rotation": false, "reset": false, "revocation": false, "binding": false,
		"bound-with-proof": false, "bind-full": false,
	}
	for _, f := range set.Events {
		for _, c := range f.Events {
			if _, ok := again[c.Name]; !ok {
				continue
			}
			again[c.Name] = true
			i, err := trustOf(t, f).Invalidation(c.Subject, c.Message())
			if err != nil {
				t.Errorf("%s: %v", c.Name, err)
			} else if got := i.Sign(registry); !bytes.Equal(got, c.Message()) {
				t.Errorf("%s:\n got %s\nwant %s", c.Name, got, c.Message())
			}
		}
	}
	for _, f := range set.Requests {
		for _, c := range f.Cases {
			signer, ok := signers[c.Name]
			if !ok {
				continue
			}
			again[c.Name] = true
			r, err := events.ParseRequest(c.Subject, c.Message())
			if err != nil {
				t.Errorf("%s: %v", c.Name, err)
				continue
			}
			got, err := draftOf(r, vectorKey(t, set, signer[1])).Sign(vectorKey(t, set, signer[0]))
			if err != nil || !bytes.Equal(got, c.Message()) {
				t.Errorf("%s: %v\n got %s\nwant %s", c.Name, err, got, c.Message())
			}
		}
	}
	for name, seen := range again {
		if !seen {
			t.Errorf("the vectors lack %q", name)
		}
	}
}

// draftOf returns the draft that the request was made from.
func draftOf(r *events.Request, newKey events.SigningKey) events.Draft {
	d := events.Draft{
		Kind: r.Kind, Target: r.Target, Timestamp: r.Timestamp, Nonce: r.Nonce, NewKey: newKey,
		ServiceType: r.ServiceType, EndpointURL: r.EndpointURL, ProviderReceipt: r.ProviderReceipt,
		Origin: r.Origin, EndEarlier: r.EndEarlier,
	}
	if r.HasGracePeriod {
		d.GracePeriod = &r.GracePeriod
	}
	return d
}
