package client

import (
	"errors"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// Why a consumer is made again.
var (
	errForgotten     = errors.New("the broker has forgotten our place in the stream")
	errStalled       = errors.New("the broker holds messages for us that don't come")
	errGap           = errors.New("a message was lost on its way")
	errAnotherStream = errors.New("the stream is not the one that was read before: it is read from its start")
)

// orderedConsumer is a consumer without acknowledgements whose messages come in order and without a
// gap, or not at all. The one of nats.go goes on by itself after what it takes for a reconnect: it
// would skip the start of a stream that was made again, and the reader would not notice.
type orderedConsumer struct {
	jetstream.Consumer
	// first is the message that comes first if the stream is still the same; zero: any.
	first         streamPlace
	anotherStream func()

	mu       sync.Mutex
	iterator jetstream.MessagesContext
	why      error // of giving up
}

// Messages implements [jetstream.Consumer].
func (c *orderedConsumer) Messages(opts ...jetstream.PullMessagesOpt) (jetstream.MessagesContext, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return nil, c.why
	}
	iterator, err := c.Consumer.Messages(opts...)
	if err != nil {
		return nil, err
	}
	c.iterator = iterator
	return &orderedMessages{MessagesContext: iterator, consumer: c}, nil
}

// giveUp ends the iteration with this error.
func (c *orderedConsumer) giveUp(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.why = why
	if c.iterator != nil {
		c.iterator.Stop()
	}
}

func (c *orderedConsumer) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

type orderedMessages struct {
	jetstream.MessagesContext
	consumer *orderedConsumer
	count    uint64
}

// Next implements [jetstream.MessagesContext].
func (m *orderedMessages) Next(opts ...jetstream.NextOpt) (jetstream.Msg, error) {
	msg, err := m.MessagesContext.Next(opts...)
	if err != nil {
		if why := m.consumer.reason(); why != nil && errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return nil, why
		}
		return nil, err
	}
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	m.count++
	if meta.Sequence.Consumer != m.count {
		return nil, errGap
	}
	if first := m.consumer.first; m.count == 1 && first.sequence > 0 &&
		(meta.Sequence.Stream != first.sequence || !meta.Timestamp.Equal(first.published)) {
		m.consumer.anotherStream()
		return nil, errAnotherStream
	}
	return unacknowledged{msg}, nil
}

// unacknowledged is a message without an acknowledgement: none is sent, so a receiver needs no
// permission to send one.
type unacknowledged struct{ jetstream.Msg }

// Ack implements [jetstream.Msg].
func (unacknowledged) Ack() error { return nil }

// Nak implements [jetstream.Msg].
func (unacknowledged) Nak() error { return nil }

// InProgress implements [jetstream.Msg].
func (unacknowledged) InProgress() error { return nil }

// TermWithReason implements [jetstream.Msg].
func (unacknowledged) TermWithReason(string) error { return nil }
