package client

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
)

// noticeWithin bounds how long a client waits after a change before it asks what has changed. All
// replicas hear of it at the same moment, and the leader may need it to promote its key.
const noticeWithin = time.Second

// notices returns a channel that reports, until ctx ends, that the registry has changed the service
// (docs/protocol.md §4). It is a hint, which anyone may have sent: only the registry's signed
// record is believed. If the broker doesn't let this account listen, the client still asks once a
// minute. A tool doesn't listen, because it ends soon.
func (c *Client) notices(ctx context.Context) <-chan struct{} {
	noticed := make(chan struct{}, 1)
	if c.cfg.Exclusive {
		return nil
	}
	listening, err := c.cfg.Conn.Subscribe(events.ChangeSubject+c.cfg.Target.String(), func(*nats.Msg) {
		select {
		case noticed <- struct{}{}:
		default: // it is known
		}
	})
	if err != nil { // the connection is closed for good
		return nil
	}
	context.AfterFunc(ctx, func() { _ = listening.Unsubscribe() })
	return noticed
}
