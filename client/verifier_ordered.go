package client

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
)

// Why a consumer is made again.
var (
	errForgotten     = errors.New("the broker has forgotten our place in the stream")
	errStalled       = errors.New("the broker holds messages for us that don't come")
	errGap           = errors.New("a message was lost on its way")
	errAnotherStream = errors.New("the stream is not the one that was read before: it is read from its start")
	errReopened      = errors.New("another consumer is read instead")
)

// orderedReader reads a consumer without acknowledgements, whose messages come in order and without
// a gap, or not at all. The one of nats.go goes on by itself after what it takes for a reconnect.
// It would skip the start of a stream that was made again, and the reader would not notice.
type orderedReader struct {
	consumer jetstream.Consumer
	// first is the message that comes first if the stream is still the same; zero: any.
	first         streamPlace
	anotherStream func()
	giveUp        context.CancelCauseFunc // ends the reading with this error
	count         uint64                  // of messages so far
}

// source starts to read. The source ends with ctx.
func (r *orderedReader) source(ctx context.Context, conn *nats.Conn) (consume.Source[struct{}], error) {
	return consume.NewPull(r.consumer, conn, 2*consume.DefaultBatch).Source(ctx, consume.DefaultBatch, r.accept)
}

// accept returns an error for a message that is not the next one.
func (r *orderedReader) accept(m *consume.Plain) error {
	r.count++
	if m.Delivery != r.count {
		return errGap
	}
	if r.count == 1 && r.first.sequence > 0 && (m.Sequence != r.first.sequence || !m.Stored.Equal(r.first.published)) {
		r.anotherStream()
		return errAnotherStream
	}
	return nil
}
