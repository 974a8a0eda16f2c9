package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// siegeAttacker is what one account does, until ctx ends. It returns how many messages it sent.
type siegeAttacker struct {
	name   string
	attack func(ctx context.Context) int
}

// attacks each fill something that all share.
func (s *siege) attacks() []siegeAttacker {
	own := strangersApp + ".own"
	large, id := bytes.Repeat([]byte("x"), 7000), strings.Repeat("i", 6900)
	refusable := []byte(`{"version":"1.0","data":{"nonce":"aaaaaaaaaa"},"signature":""}`)
	return []siegeAttacker{
		{"service: large requests", func(ctx context.Context) int {
			return s.flood(ctx, "stranger", func(int) *nats.Msg { return &nats.Msg{Subject: events.RotationSubject + own, Data: large} })
		}},
		{"service: long ids", func(ctx context.Context) int {
			return s.flood(ctx, "stranger", func(int) *nats.Msg {
				return &nats.Msg{
					Subject: events.RotationSubject + own, Data: []byte("x"), Header: nats.Header{jetstream.MsgIDHeader: {id + rand.Text()}},
				}
			})
		}},
		{"service: consumers of receipts", func(ctx context.Context) int {
			return s.flood(ctx, "stranger", func(i int) *nats.Msg {
				name := fmt.Sprintf("c-%d", i)
				return &nats.Msg{
					Subject: "$JS.API.CONSUMER.CREATE." + streams.Receipts + "." + name + "." + events.ReceiptSubject + own,
					Data: fmt.Appendf(nil, `{"stream_name": %q, "config": {"durable_name": %q, "name": %[2]q, "ack_policy": "explicit", "filter_subject": %q}}`,
						streams.Receipts, name, events.ReceiptSubject+own),
				}
			})
		}},
		{"developer: invented names", func(ctx context.Context) int {
			return s.flood(ctx, "strange-developer", func(i int) *nats.Msg {
				kind := []string{events.RotationSubject, events.BindingSubject, events.RevocationSubject}[i%3]
				return &nats.Msg{Subject: kind + strangersApp + ".s" + strings.ToLower(rand.Text()), Data: refusable}
			})
		}},
		{"developer: large requests for invented names", func(ctx context.Context) int {
			return s.flood(ctx, "strange-developer", func(int) *nats.Msg {
				return &nats.Msg{Subject: events.BindingSubject + strangersApp + ".s" + strings.ToLower(rand.Text()), Data: large}
			})
		}},
		{"receiver: durables that nobody reads", func(ctx context.Context) int {
			js, made := s.jetStream("strange-receiver"), 0
			for i := range strangeConsumers {
				config := streams.SubscriberConsumer(streams.ReceiverConsumer("strange", i+1))
				if _, err := js.CreateOrUpdateConsumer(s.t.Context(), streams.Invalidations, config); err == nil {
					made++
				}
			}
			<-ctx.Done()
			return made
		}},
	}
}
