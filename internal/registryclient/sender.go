package registryclient

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
)

// Errors of a request that has no answer yet. If it is sent again, byte for byte, it gets its first
// receipt.
var (
	// ErrNotStored means that the broker did not take the request, or that its confirmation was
	// lost.
	ErrNotStored = errors.New("the broker has not confirmed the request")
	// ErrNoAnswer means that the request is stored, and not answered.
	ErrNoAnswer = errors.New("the request is stored, but the registry has not answered yet")
)

// Message is a signed request in the form that is published, and published again after a crash.
type Message struct {
	Subject string       `json:"subject"`
	Nonce   events.Nonce `json:"nonce"`
	// NewKey is the key that it asks for; zero in a revocation.
	NewKey  events.PublicKey `json:"new_key,omitzero"`
	Payload string           `json:"payload"`
}

// Sign makes a message from a draft. newKey replaces the draft's own; it is nil in a revocation.
func Sign(d events.Draft, by, newKey crypto.Signer) (Message, error) {
	payload, err := d.SignWith(by, newKey)
	if err != nil {
		return Message{}, fmt.Errorf("sign the request: %w", err)
	}
	m := Message{Subject: d.Subject(), Nonce: d.Nonce, Payload: string(payload)}
	if newKey != nil {
		m.NewKey, err = events.PublicKeyOf(newKey)
	}
	return m, err
}

// answeredBy reports whether a receipt is about this message (docs/protocol.md §7.3). Anyone can
// send a request with our nonce and have it refused, so a refusal counts only if it names exactly
// our bytes.
func (m *Message) answeredBy(r *events.Receipt) bool {
	if r.RequestNonce != m.Nonce {
		return false
	}
	if r.Event == events.RequestCommitted {
		return r.PublicKey == m.NewKey
	}
	return r.RequestHash == events.RequestHash([]byte(m.Payload))
}

// Sender sends requests over JetStream. It believes the receipts that Trust accepts.
type Sender struct {
	JetStream jetstream.JetStream
	Trust     events.Trust
	// Again says that the message may have been sent before. Send then looks for its answer first:
	// if a refused message were sent again, it might be committed, and the sender would not know.
	Again bool
	// Allowed, if not nil, is called before a message is published and after the answer was looked
	// for. Its error stops Send.
	Allowed func(context.Context) error
}

// Send publishes a message, and waits for its receipt until ctx ends or the connection is closed.
// Then the error is [ErrNotStored] or [ErrNoAnswer]. A refusal is a receipt, not an error. stored,
// if not nil, is called when the broker has the message.
func (s Sender) Send(ctx context.Context, target events.Target, m Message, stored func()) (events.Receipt, error) {
	w, err := s.listen(target, m)
	if err != nil {
		return events.Receipt{}, fmt.Errorf("%w: listen for the receipt: %w", ErrNotStored, err)
	}
	defer w.stop()
	if s.Again {
		if receipt, ok := w.look(ctx); ok {
			return receipt, nil
		}
	}
	if s.Allowed != nil {
		if err := s.Allowed(ctx); err != nil {
			return events.Receipt{}, err
		}
	}
	known, err := s.publish(ctx, m, true)
	if err == nil && known {
		if receipt, ok := w.soon(ctx); ok {
			return receipt, nil
		}
		_, err = s.publish(ctx, m, false)
	}
	if err != nil {
		return events.Receipt{}, err
	}
	if stored != nil {
		stored()
	}
	receipt, err := w.wait(ctx)
	if err != nil {
		err = fmt.Errorf("%w (%w)", ErrNoAnswer, err)
	}
	return receipt, err
}

// If the broker has no room, it has some again as soon as the registry has processed a request, or
// the broker has stored one.
const (
	roomAfter  = 2 * time.Millisecond // doubled each time
	roomAtMost = time.Second
)

// Publish publishes a message, and waits until the broker has it, or one with the same ID.
func (s Sender) Publish(ctx context.Context, m Message) error {
	_, err := s.publish(ctx, m, true)
	return err
}

// publish publishes a message, and waits until it is stored. If the broker has no room for it, it
// tries again until ctx ends. known reports that the broker did not store it, because it has just
// had a message with this ID: the same message, or a stranger's.
func (s Sender) publish(ctx context.Context, m Message, withID bool) (known bool, err error) {
	msg := &nats.Msg{Subject: m.Subject, Data: []byte(m.Payload), Header: nats.Header{}}
	if withID {
		msg.Header.Set(jetstream.MsgIDHeader, events.RequestMsgID(m.Subject, m.Nonce))
	}
	var full error
	for pause := roomAfter; ; pause = min(2*pause, roomAtMost) {
		ack, err := s.JetStream.PublishMsg(ctx, msg)
		switch {
		case err == nil:
			return ack.Duplicate, nil
		case room.Lacks(err), room.TooMany(err):
			full = fmt.Errorf("%w: %s: %w", ErrNotStored, noRoom(err), err)
		case full == nil || ctx.Err() == nil:
			return false, fmt.Errorf("%w: %w", ErrNotStored, err)
		}
		select {
		case <-ctx.Done():
			return false, full
		case <-time.After(jittered(pause)):
		}
	}
}

// noRoom says why the broker takes no more, and what to do.
func noRoom(err error) string {
	switch {
	case room.TooMany(err):
		return "more messages come to it than it can store; someone floods it (omi doctor)"
	case !room.OfStream(err):
		return "its store is full; its operator must give JetStream more, or look at what fills it (omi doctor)"
	case strings.Contains(err.Error(), "per subject"):
		return "as many requests as may wait for this service wait already; " +
			"the registry is unavailable or behind, or someone floods this service (omi doctor)"
	}
	return "the stream of requests is full; the registry is unavailable or behind, or someone floods it (omi doctor)"
}
