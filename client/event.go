package client

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
)

// EventKind is what happened.
type EventKind string

// What happens in a [Client], for logging.
const (
	Requested EventKind = "requested" // the request is on the disk, and goes out
	Stored    EventKind = "stored"    // the broker has it
	Resumed   EventKind = "resumed"   // a request was under way at the start, and goes out again
	Committed EventKind = "committed" // the registry's answer is there; the old key still signs
	Applied   EventKind = "applied"   // a core service, Durable, has applied the change
	// Promoted means that the new key signs from now on. Sequence is 0 if another process promoted
	// it.
	Promoted EventKind = "promoted"
	Refused  EventKind = "refused"  // the registry said no; Err says why
	Retrying EventKind = "retrying" // something failed, Err; it is tried again
	// Tightened means that a group could read the key's files, Err says which. Their mode is 0600
	// again.
	Tightened EventKind = "tightened"
	// Exposed means that all users of this machine may put other files in the key store's folder.
	// Err says which folder, and what to do. The key still signs.
	Exposed EventKind = "exposed"
	// Redated means that the registry refused the time in the request. Err is ErrClock, and says
	// how far this machine's clock is from the registry's. The request goes out once more, dated by
	// the registry's time.
	Redated EventKind = "redated"
	// Foreign means that the registry's current key is not in the key store. Err is ErrForeignKey,
	// and says more. It is reported once for each key.
	Foreign EventKind = "foreign"
	// Leads means that this process changes the keys from now on: the earlier leader has ended.
	Leads   EventKind = "leads"
	Follows EventKind = "follows" // another process changes the keys, and this one follows it
)

// Event says what happened to the service's key.
type Event struct {
	Kind     EventKind
	At       time.Time
	Key      events.PublicKey // the key that it is about; zero if there is none
	Sequence int64            // of the change; 0 if it is not known
	Durable  string           // of Applied
	Err      error            // of Refused, Retrying, Redated, Foreign, Tightened and Exposed
}

// String is the event in one line.
func (e Event) String() string {
	text := string(e.Kind)
	if e.Durable != "" {
		text += " by " + e.Durable
	}
	if e.Sequence > 0 {
		text += fmt.Sprintf(", sequence %d", e.Sequence)
	}
	if !e.Key.IsZero() {
		text += ", key " + e.Key.String()
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// LogValue implements [slog.LogValuer].
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("kind", string(e.Kind))}
	if e.Durable != "" {
		attrs = append(attrs, slog.String("durable", e.Durable))
	}
	if e.Sequence > 0 {
		attrs = append(attrs, slog.Int64("sequence", e.Sequence))
	}
	if !e.Key.IsZero() {
		attrs = append(attrs, slog.String("key", e.Key.String()))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.Err))
	}
	return slog.GroupValue(attrs...)
}

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
