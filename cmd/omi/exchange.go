package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
)

// message is a signed request as it is published, and as it is published again after a crash.
type message struct {
	Subject string       `json:"subject"`
	Nonce   events.Nonce `json:"nonce"`
	Payload string       `json:"payload"`
}

func newMessage(d events.Draft, by events.SigningKey) (message, error) {
	payload, err := d.Sign(by)
	if err != nil {
		return message{}, fmt.Errorf("sign the request: %w", err)
	}
	return message{Subject: d.Subject(), Nonce: d.Nonce, Payload: string(payload)}, nil
}

// errNoAnswer means that the request is stored and not answered yet.
var errNoAnswer = errors.New("the request is stored, but the registry has not answered yet; run the same command again to pick up its answer")

// exchange publishes a request, and waits for its receipt. It reads the stream of receipts from its start, so it finds
// the answer to a request that was sent before, too.
func (s *session) exchange(ctx context.Context, t events.Target, m message) (events.Receipt, error) {
	receipts, err := s.js.OrderedConsumer(ctx, events.ReceiptStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.ReceiptSubject + t.String()},
	})
	if err != nil {
		return events.Receipt{}, process.Unreachable(fmt.Errorf("read the receipts: %w", err))
	}
	iterator, err := receipts.Messages()
	if err != nil {
		return events.Receipt{}, process.Unreachable(fmt.Errorf("read the receipts: %w", err))
	}
	defer iterator.Stop()
	if err := s.publish(ctx, m); err != nil {
		return events.Receipt{}, err
	}
	for {
		msg, err := iterator.Next(jetstream.NextContext(ctx))
		if err != nil {
			return events.Receipt{}, process.Unreachable(fmt.Errorf("%w (%w)", errNoAnswer, err))
		}
		receipt, err := s.trust.Receipt(msg.Subject(), msg.Data())
		if err == nil && m.answeredBy(&receipt) { // what can't be trusted answers nothing
			return receipt, nil
		}
	}
}

// answeredBy reports whether a receipt is about this message. Anybody can send a request with our nonce and have it
// refused, so a refusal counts only if it names our very bytes.
func (m *message) answeredBy(r *events.Receipt) bool {
	return r.RequestNonce == m.Nonce &&
		(r.Event == events.RequestCommitted || r.RequestHash == events.RequestHash([]byte(m.Payload)))
}

func (s *session) publish(ctx context.Context, m message) error {
	msg := &nats.Msg{Subject: m.Subject, Data: []byte(m.Payload), Header: nats.Header{}}
	msg.Header.Set(jetstream.MsgIDHeader, events.RequestMsgID(m.Subject, m.Nonce))
	if _, err := s.js.PublishMsg(ctx, msg); err != nil {
		return process.Unreachable(fmt.Errorf("publish the request: %w", err))
	}
	return nil
}

// answer prints a receipt. A refusal is an error with its reason.
func answer(c connection, receipt events.Receipt, done string) error {
	if c.JSON {
		if err := process.PrintJSON(receiptView(receipt)); err != nil {
			return err
		}
	}
	if receipt.Event == events.RequestRejected {
		return process.Refused(fmt.Errorf("refused: %s: %s", receipt.Reason, receipt.Detail))
	}
	if c.JSON {
		return nil
	}
	fmt.Printf("%s (sequence %d).\n", done, receipt.Sequence)
	if !receipt.PublicKey.IsZero() {
		fmt.Printf("  current key  %s\n", receipt.PublicKey)
	}
	if receipt.GracePeriodExpiry > receipt.Timestamp {
		fmt.Printf("  the old key stays valid until %s\n", clock(receipt.GracePeriodExpiry))
	}
	return nil
}

// receiptJSON is a receipt for programs.
type receiptJSON struct {
	Event             events.ReceiptKind `json:"event"`
	AppID             events.AppID       `json:"app_id"`
	ServiceID         events.ServiceID   `json:"service_id"`
	RequestNonce      events.Nonce       `json:"request_nonce,omitzero"`
	Timestamp         int64              `json:"timestamp"`
	Sequence          int64              `json:"sequence,omitzero"`
	PublicKey         events.PublicKey   `json:"public_key,omitzero"`
	GracePeriodExpiry int64              `json:"grace_period_expiry,omitzero"`
	EventNonce        events.Nonce       `json:"event_nonce,omitzero"`
	Reason            events.Reason      `json:"reason,omitzero"`
	Detail            string             `json:"detail,omitzero"`
}

func receiptView(r events.Receipt) receiptJSON {
	return receiptJSON{
		Event: r.Event, AppID: r.Target.App, ServiceID: r.Target.Service, RequestNonce: r.RequestNonce, Timestamp: r.Timestamp,
		Sequence: r.Sequence, PublicKey: r.PublicKey, GracePeriodExpiry: r.GracePeriodExpiry, EventNonce: r.EventNonce,
		Reason: r.Reason, Detail: r.Detail,
	}
}

func clock(seconds int64) string { return time.Unix(seconds, 0).Format(time.TimeOnly) }
