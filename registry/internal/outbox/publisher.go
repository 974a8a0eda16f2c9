package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

const (
	publishWithin = 5 * time.Second // for the broker to confirm that it has messages
	// So many messages go in an atomic batch: at least batchFrom, because a batch has a price of
	// its own, and at most batchMost, the broker's limit.
	batchFrom = 64
	batchMost = 1000
)

// publisher publishes signed messages. It is safe for concurrent use.
type publisher struct {
	js      jetstream.JetStream
	batches bool // see [Config]
}

// sendResult is what became of messages that were sent, by their indexes.
type sendResult struct {
	stored  []bool        // their stream has them
	noSpace []bool        // the broker refused them because it has no space
	faults  map[int]error // the messages that can't be sent as they are; nil: none
	last    uint64        // the last place in the stream of invalidations that one of them got
	err     error         // what is wrong with the others; a lack of space is preferred
}

// send publishes messages and reports what became of them. A reconnect fails the pending ones,
// although they may have been stored. Sending them again is safe, because every reader knows a
// message by its nonce.
func (p *publisher) send(ctx context.Context, messages []decision.Message) *sendResult {
	sent := &sendResult{stored: make([]bool, len(messages)), noSpace: make([]bool, len(messages))}
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	if p.batches && len(messages) >= batchFrom {
		// If it is batches that hang, half of the time is left.
		half, cancel := context.WithTimeout(ctx, publishWithin/2)
		sent.last = p.sendBatches(half, messages, sent.stored)
		cancel()
	}
	p.sendEach(ctx, messages, sent)
	return sent
}

// notify publishes a receipt to those who wait for it, without a consumer. If it is lost, they look
// for it. JetStream's RePublish would cost three times as much, and it skips messages that the
// stream already has.
func (p *publisher) notify(m decision.Message) {
	if target, ok := strings.CutPrefix(m.Subject, events.ReceiptSubject); ok {
		_ = p.js.Conn().Publish(events.AnswerSubject+target, m.Payload)
	}
}

// sendBatches publishes messages in atomic batches, each for one stream. The messages that are not
// stored then must be sent one by one: the broker refuses a whole batch if the stream has one of
// its messages already, and every batch if it or the stream takes none. No receipt is sent before
// an event that is still to be sent, so that no one hears of a change before those who must act on
// it.
func (p *publisher) sendBatches(ctx context.Context, messages []decision.Message, stored []bool) (last uint64) {
	streams := map[bool][]int{} // by whether they are events
	for i := range messages {
		event := messages[i].IsEvent()
		streams[event] = append(streams[event], i)
	}
	for _, event := range []bool{true, false} {
		complete := true
		for batch := range slices.Chunk(streams[event], batchMost) {
			sequence, err := p.sendBatch(ctx, messages, batch)
			if err != nil {
				complete = false
				continue
			}
			for _, i := range batch {
				stored[i] = true
			}
			if event {
				last = max(last, sequence)
			}
		}
		if !complete {
			break
		}
	}
	return last
}

// sendBatch publishes the messages with these indexes in one atomic batch, and returns the last
// place in the stream that one of them got.
func (p *publisher) sendBatch(ctx context.Context, messages []decision.Message, indices []int) (uint64, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	list := make([]*nats.Msg, len(indices))
	for k, i := range indices {
		list[k] = messageOf(&messages[i])
	}
	wait := jetstreamext.BatchFlowControl{AckFirst: true, AckTimeout: publishWithin}
	if deadline, ok := ctx.Deadline(); ok {
		// Otherwise each batch would wait the full time for a silent broker.
		wait.AckTimeout = time.Until(deadline)
	}
	ack, err := jetstreamext.PublishMsgBatch(ctx, p.js, list, wait)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// sendEach publishes the messages that are not stored yet, all at once, and then waits for the
// broker.
//
// Those who wait hear of a committed change right after its receipt is sent, which saves a round
// trip: the change stands whatever becomes of the receipt. They hear of a refusal once it is
// stored: until then the request may be decided again.
func (p *publisher) sendEach(ctx context.Context, messages []decision.Message, sent *sendResult) {
	futures := make([]jetstream.PubAckFuture, len(messages))
	for i, m := range messages {
		if !sent.stored[i] {
			future, err := p.js.PublishMsgAsync(messageOf(&m))
			if err != nil && !sent.fail(i, m.Subject, err) {
				break // not this message's fault: the others would fail in the same way
			}
			futures[i] = future
		}
		if sent.stored[i] || m.Committed() {
			p.notify(m)
		}
	}
	for i, future := range futures {
		if future == nil {
			continue
		}
		ack, err := outcomeOf(ctx, future)
		if err != nil {
			sent.fail(i, messages[i].Subject, err)
			continue
		}
		sent.stored[i] = true
		if !messages[i].Committed() {
			p.notify(messages[i])
		}
		if ack.Stream == streams.Invalidations {
			sent.last = max(sent.last, ack.Sequence)
		}
	}
}

// outcomeOf waits for the broker's answer until ctx ends. An answer that is there by then counts.
func outcomeOf(ctx context.Context, future jetstream.PubAckFuture) (*jetstream.PubAck, error) {
	select {
	case ack := <-future.Ok():
		return ack, nil
	case err := <-future.Err():
		return nil, err
	case <-ctx.Done():
	}
	select {
	case ack := <-future.Ok():
		return ack, nil
	case err := <-future.Err():
		return nil, err
	default:
		return nil, fmt.Errorf("wait for the broker: %w", ctx.Err())
	}
}

// fail records why a message was not stored, and reports whether the message itself is at fault.
func (s *sendResult) fail(i int, subject string, err error) bool {
	switch s.noSpace[i] = room.Lacks(err); {
	case itsOwnFault(err):
		if s.faults == nil {
			s.faults = map[int]error{}
		}
		s.faults[i] = err
		return true
	case s.noSpace[i] || !room.Lacks(s.err):
		s.err = fmt.Errorf("publish to %s: %w", subject, err)
	}
	return false
}

// messageOf returns the NATS message to send.
func messageOf(m *decision.Message) *nats.Msg {
	return &nats.Msg{Subject: m.Subject, Data: m.Payload, Header: nats.Header{jetstream.MsgIDHeader: {m.Nonce.String()}}}
}
