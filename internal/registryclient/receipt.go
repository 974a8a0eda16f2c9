package registryclient

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// LastReceiptSubject is where the broker gives the last receipt of the target that follows it. The
// question has no body, so the broker can limit an account to its own target.
const LastReceiptSubject = "$JS.API.DIRECT.GET." + streams.Receipts + "." + events.ReceiptSubject

const (
	// answers that may wait to be read; if more come, as in a flood of refusals, the sender looks
	// for its answer
	heardAtOnce = 256
	lookWithin  = time.Second     // for one question
	lookAfter   = 2 * time.Second // without an answer: messages are lost when a connection breaks
	lookSeldom  = 30 * time.Second
)

// waiting waits for the receipt of one message. It uses a subscription at the broker, and no
// consumer, of which a stream can have 1,000.
type waiting struct {
	conn    *nats.Conn
	trust   events.Trust
	target  events.Target
	message Message
	heard   chan *nats.Msg
	again   chan nats.Status // the connection was lost and is back, or is closed
	ended   func()
}

// listen hears the answers to a service from now on.
func (s Sender) listen(target events.Target, m Message) (*waiting, error) {
	w := &waiting{conn: s.JetStream.Conn(), trust: s.Trust, target: target, message: m, heard: make(chan *nats.Msg, heardAtOnce)}
	subscription, err := w.conn.ChanSubscribe(events.AnswerSubject+target.String(), w.heard)
	if err != nil {
		return nil, err
	}
	w.again = w.conn.StatusChanged(nats.CONNECTED, nats.CLOSED)
	w.ended = func() {
		w.conn.RemoveStatusListener(w.again)
		_ = subscription.Unsubscribe() // fails only on a closed connection
	}
	return w, nil
}

func (w *waiting) stop() { w.ended() }

// wait returns the answer as soon as it arrives.
func (w *waiting) wait(ctx context.Context) (events.Receipt, error) {
	pause := lookAfter
	next := time.NewTimer(jittered(pause))
	defer next.Stop()
	for {
		select {
		case msg := <-w.heard:
			if receipt, ok := w.answer(msg.Data); ok {
				return receipt, nil
			}
			continue
		case <-ctx.Done():
			return events.Receipt{}, ctx.Err()
		case <-w.again:
		case <-next.C:
			pause = min(2*pause, lookSeldom)
			next.Reset(jittered(pause))
		}
		if w.conn.IsClosed() {
			return events.Receipt{}, nats.ErrConnectionClosed
		}
		if receipt, ok := w.look(ctx); ok {
			return receipt, nil
		}
	}
}

// soon returns the answer if it comes within a moment, or was given before.
func (w *waiting) soon(ctx context.Context) (events.Receipt, bool) {
	if receipt, ok := w.look(ctx); ok {
		return receipt, true
	}
	moment, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	if receipt, err := w.wait(moment); err == nil {
		return receipt, true
	}
	return w.look(ctx)
}

// jittered spreads the questions of many waiting senders to one registry.
func jittered(d time.Duration) time.Duration {
	return d + rand.N(d/4) //nolint:gosec // jitter is no secret
}

// look looks for an answer that was given before: the last receipt that the stream has of the
// service, and then the registry's lookup. If neither can be asked, there is no answer yet.
func (w *waiting) look(ctx context.Context) (events.Receipt, bool) {
	asking, cancel := context.WithTimeout(ctx, lookWithin)
	last, err := w.conn.RequestWithContext(asking, LastReceiptSubject+w.target.String(), nil)
	cancel()
	if err == nil {
		if receipt, ok := w.answer(last.Data); ok {
			return receipt, true
		}
	}
	asking, cancel = context.WithTimeout(ctx, lookWithin)
	defer cancel()
	question := events.ReceiptQuery{RequestNonce: w.message.Nonce, RequestHash: events.RequestHash([]byte(w.message.Payload))}
	told, err := Ask(asking, w.conn, events.LookupReceiptSubject+w.target.String(), question.Encode())
	if err != nil {
		return events.Receipt{}, false
	}
	return w.answer(told)
}

// answer reads a receipt, and reports whether it can be believed and answers the message.
func (w *waiting) answer(payload []byte) (events.Receipt, bool) {
	// most messages are others', and this is cheaper than checking a signature
	if events.RequestNonceOf(payload) != w.message.Nonce {
		return events.Receipt{}, false
	}
	receipt, err := w.trust.Receipt(events.ReceiptSubject+w.target.String(), payload)
	return receipt, err == nil && w.message.answeredBy(&receipt)
}
