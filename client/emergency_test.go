package client_test

import (
	"context"
	"crypto"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
)

func emergency(ctx context.Context, c *client.Client) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := c.RotateEmergency(ctx)
		done <- err
	}()
	return done
}

// TestRotateEmergency: it asks for the end of every earlier key, for the registry that the service trusts, also when the request is
// dated again.
func TestRotateEmergency(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	done := emergency(t.Context(), c)
	theirs := time.Now().Unix() + 600
	for range 2 {
		r := p.request(t)
		if !r.endEarlier || r.origin != subtest.Origin {
			t.Errorf("asked for %+v", r)
		}
		if p.of(client.Redated) == nil {
			p.refuse(t, r, events.TimestampOutOfWindow, theirs)
			p.await(t, client.Redated, 1)
			continue
		}
		p.record(2, r.key, theirs, theirs, true)
		p.commit(t, r, 2, theirs, 0)
	}
	if err := returns(t, "RotateEmergency", done); err != nil {
		t.Fatal(err)
	}
	ordinary := rotating(t.Context(), c)
	r := p.request(t)
	if r.endEarlier || r.origin != subtest.Origin {
		t.Errorf("an ordinary rotation asked for %+v", r)
	}
	p.record(3, r.key, theirs, theirs, true)
	p.commit(t, r, 3, theirs, 300)
	if err := returns(t, "Rotate", ordinary); err != nil {
		t.Fatal(err)
	}
}

// TestEmergencyIsNoOther: a change that was asked for before has not ended the keys in grace: neither one under way, nor one whose
// key turns out to be the current one when the emergency is refused.
func TestEmergencyIsNoOther(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	now := time.Now().Unix()
	mild := make(chan error, 1)
	go func() {
		_, err := c.RotateWithGrace(t.Context(), 0)
		mild <- err
	}()
	first := p.request(t)
	done := emergency(t.Context(), c)
	p.record(2, first.key, now, now, true)
	p.commit(t, first, 2, now, 0)
	if err := returns(t, "RotateWithGrace", mild); err != nil {
		t.Fatal(err)
	}
	second := p.request(t)
	if first.endEarlier || !second.endEarlier || first.key == second.key {
		t.Fatalf("asked for %+v and then for %+v", first, second)
	}
	// Its key is current all the same: by an earlier request of the service's, which somebody has sent again.
	p.record(3, second.key, now, now, true, events.GraceKey{PublicKey: first.key, Expires: now + 300})
	p.refuse(t, second, events.SupersededKey, now)
	third := p.request(t)
	if !third.endEarlier || third.key == second.key {
		t.Fatalf("asked for %+v and then for %+v", second, third)
	}
	p.record(4, third.key, now, now, true)
	p.commit(t, third, 4, now, 0)
	if err := returns(t, "RotateEmergency", done); err != nil {
		t.Fatal(err)
	}
	signsWith(t, c, third.key)
}

// TestDeputy: who has a service sign an invoice gets no rotation of its key signed, and no HTTP message. The service itself signs
// both.
func TestDeputy(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	zero := int64(0)
	draft := events.Draft{
		Kind: events.Rotation, Target: p.target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce(),
		NewKey: events.GenerateSigningKey(), GracePeriod: &zero,
	}
	message, err := draft.Sign(events.GenerateSigningKey())
	if err != nil {
		t.Fatal(err)
	}
	r := must(events.ParseRequest(draft.Subject(), message))
	base := "\"@method\": POST\n\"@authority\": bank.example\n\"@signature-params\": (\"@method\" \"@authority\");created=1"
	for _, invoice := range [][]byte{r.Signed, message, []byte(base)} {
		signature, err := c.Signer().Sign(nil, invoice, crypto.Hash(0))
		if !errors.Is(err, client.ErrReserved) || signature != nil {
			t.Errorf("signed %s: %v", invoice, err)
		}
	}
	if _, err := c.Signer().Sign(nil, []byte(`{"total":12}`), crypto.Hash(0)); err != nil {
		t.Errorf("an invoice: %v", err)
	}
	if _, err := draft.SignWith(c.Signer(), draft.NewKey.Private()); !errors.Is(err, client.ErrReserved) {
		t.Errorf("a request that is not the client's own: %v", err)
	}
	for name, id := range map[string]client.Identity{"signer": c.Signer(), "embedded": struct{ *client.Signer }{c.Signer()}} {
		if err := client.SignMsg(id, &nats.Msg{Subject: "bank.pay", Data: []byte("12")}); err != nil {
			t.Errorf("%s: a message of the service's own: %v", name, err)
		}
	}
	if _, err := (foreign{c.Signer()}).Sign(nil, []byte(base), nil); !errors.Is(err, client.ErrReserved) {
		t.Errorf("by way of another identity: %v", err)
	}
}

// foreign is an identity that hides whose key it signs with.
type foreign struct{ signer *client.Signer }

func (f foreign) Sign(rand io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return f.signer.Sign(rand, message, opts)
}
