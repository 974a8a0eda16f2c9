package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// paper is a journal in memory.
type paper struct {
	Keys
	text []byte
}

func (p *paper) Load(context.Context) ([]byte, error) { return p.text, nil }

func (p *paper) Save(_ context.Context, text []byte) error {
	p.text = text
	return nil
}

// FuzzJournal: a journal is refused in whole, or taken in whole: saved again it says the same, and every answer that is
// drawn from it is about its own service.
func FuzzJournal(f *testing.F) {
	target, err := events.ParseTarget("org.omiappreg.alice.shop.7f8a9d.cms-article-77")
	if err != nil {
		f.Fatal(err)
	}
	key := events.GenerateSigningKey()
	draft := events.Draft{Kind: events.Rotation, Target: target, Timestamp: 1_705_412_600, Nonce: events.NewNonce()}
	message, err := registryclient.Sign(draft, key.Private(), events.GenerateSigningKey().Private())
	if err != nil {
		f.Fatal(err)
	}
	p := &paper{}
	c := &Client{cfg: Config{Target: target, Store: p}}
	for _, e := range []*entry{
		nil, {Target: target.String(), Kind: events.Rotation, Request: message},
		{Target: target.String(), Kind: events.Reset, AtOnce: true, Request: message, Committed: &commitment{
			Sequence: 2, Timestamp: 1_705_412_610, GracePeriodExpiry: 1_705_412_910, EventNonce: events.NewNonce(), PromoteAt: 1_705_412_700_000,
		}},
	} {
		if err := c.save(f.Context(), e); err != nil {
			f.Fatal(err)
		}
		f.Add(p.text)
	}
	f.Add([]byte("{}"))
	f.Add([]byte("null"))
	f.Add([]byte(`{"target":"` + target.String() + `"}`))
	f.Add([]byte(`{"target":"` + target.String() + `","kind":"key_rotation","request":{},"committed":{"grace_period_expiry":9223372036854775807,"timestamp":-1}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p := &paper{text: text}
		c := &Client{cfg: Config{Target: target, Store: p}}
		e, err := c.load(t.Context())
		if err != nil {
			if !errors.Is(err, ErrJournal) || e != nil {
				t.Errorf("%v, %v", e, err)
			}
			return
		}
		if e == nil {
			return
		}
		if r, err := events.ParseRequest(e.Request.Subject, []byte(e.Request.Payload)); err != nil || r.Target != target || r.Nonce != e.Request.Nonce ||
			r.NewKey != e.Request.NewKey || r.Kind != e.Kind {
			t.Errorf("%s holds no request of its own: %v", text, err)
		}
		if e.Committed != nil {
			if got := e.receipt(target, "omiappreg.org"); got.Target != target || got.Sequence < 1 || e.Committed.half() < 0 || e.Committed.half() > e.Committed.grace() {
				t.Errorf("%s became the receipt %+v, and half of its grace is %s", text, got, e.Committed.half())
			}
			if grace := e.Committed.grace(); grace < 0 || grace > 200*365*24*time.Hour {
				t.Errorf("%s has a grace period of %s", text, grace)
			}
		}
		if err := c.save(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		again, err := c.load(t.Context())
		if err != nil {
			t.Fatalf("written as %s: %v", p.text, err)
		}
		if diff := cmp.Diff(e, again, cmp.AllowUnexported(entry{}), cmpopts.EquateComparable(events.Nonce{}, events.PublicKey{})); diff != "" {
			t.Errorf("written as %s, it is another:\n%s", p.text, diff)
		}
	})
}
