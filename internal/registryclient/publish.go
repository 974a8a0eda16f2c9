package registryclient

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
)

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
