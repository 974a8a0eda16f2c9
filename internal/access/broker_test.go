package access_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/access"
	"omiappreg.org/keyrotation/internal/request"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry"
)

func TestSpike(t *testing.T) {
	cms, _ := events.ParseTarget("org.example.shop.cms")
	blog, _ := events.ParseTarget("org.example.shop.blog")
	b := testenv.NewSecuredBroker(t, func(nkey func(string) string) []access.Account {
		return []access.Account{access.Service(cms, nkey("cms")), access.Service(blog, nkey("blog")), access.Developer(cms.App, nkey("dev")), access.Receiver("shop", nkey("receiver"), []string{"authsub"})}
	})
	show := func(who string) func(error) { return func(err error) { t.Log(who, err) } }
	reg := b.Connect("REGISTRY", show("registry"))
	js, _ := jetstream.New(reg)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := registry.EnsureStreams(ctx, js, 1); err != nil {
		t.Fatal(err)
	}
	nc := b.Connect("cms", show("cms"))
	cjs, _ := jetstream.New(nc)
	for _, sub := range []string{"$JS.API.INFO", "$JS.API.CONSUMER.CREATE.OMI_RECEIPTS.x.omi.v1.receipts.org.example.shop.cms", "omi.v1.requests.rotation.org.example.shop.cms", "$JS.API.CONSUMER.MSG.NEXT.OMI_RECEIPTS.x"} {
		m, err := nc.Request(sub, []byte(`{"stream_name":"OMI_RECEIPTS","config":{"name":"x","filter_subject":"omi.v1.receipts.org.example.shop.cms","ack_policy":"none","deliver_policy":"all","mem_storage":true}}`), 2*time.Second)
		if err != nil {
			t.Log(sub, err)
			continue
		}
		t.Log(sub, string(m.Data))
	}
	key := events.GenerateSigningKey()
	trust, _ := events.NewTrust("omiappreg.org", key.Public())
	s := request.Sender{JetStream: cjs, Trust: trust}
	d := events.Draft{Kind: events.Rotation, Target: cms, Timestamp: 1, Nonce: events.NewNonce()}
	newKey := events.GenerateSigningKey()
	m, _ := request.Sign(d, key.Private(), newKey.Private())
	mm := m
	go func() {
		c, err := js.CreateOrUpdateConsumer(ctx, events.RequestStream, events.RegistryConsumerConfig())
		if err != nil {
			t.Error(err)
			return
		}
		msg, err := c.Next()
		if err != nil {
			t.Error(err)
			return
		}
		t.Log(msg.Headers(), msg.Subject())
		msg.DoubleAck(ctx)
		r := events.Receipt{Origin: "omiappreg.org", Target: cms, Event: events.RequestCommitted, RequestNonce: m.Nonce, Timestamp: 2, Sequence: 2,
			PublicKey: newKey.Public(), GracePeriodExpiry: 302, EventNonce: events.NewNonce(), Nonce: events.NewNonce()}
		if _, err := js.Publish(ctx, r.Subject(), r.Sign(key)); err != nil {
			t.Error(err)
		}
	}()
	r, err := s.Send(ctx, cms, m, func() { t.Log("stored") })
	t.Log(r, err)
	for i := range 6 {
	m, err := nc.Request("$JS.API.CONSUMER.CREATE.OMI_RECEIPTS.y.omi.v1.receipts.org.example.shop.cms", []byte(`{"stream_name":"OMI_RECEIPTS","config":{"name":"y","filter_subject":"omi.v1.receipts.org.example.shop.cms","ack_policy":"none","deliver_policy":"all","mem_storage":true}}`), 2*time.Second)
	if err != nil { t.Log(err); continue }
	t.Log(i, m.Header, m.Subject, string(m.Data))
	r, err = s.Send(ctx, cms, mm, func() { t.Log("stored") })
	t.Log(r, err)
	}
}
