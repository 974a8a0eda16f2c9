package inspect

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/streams"
)

// Feed is what to show of a deployment's messages.
type Feed struct {
	Session  *session.Session
	App      string // "": of all apps
	Services string // the end of their subjects
	All      bool   // also what the streams hold
	JSON     bool
}

// Follow prints messages as they come, until ctx ends.
func Follow(ctx context.Context, f Feed) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.Session.Conn.SetDisconnectErrHandler(func(*nats.Conn, error) { tell("the broker is gone, waiting for it") })
	f.Session.Conn.SetReconnectHandler(func(*nats.Conn) { tell("the broker is back") })
	defer f.Session.Conn.SetDisconnectErrHandler(nil) // after this, the command disconnects on purpose
	lines, ended := make(chan line), make(chan error, 3)
	for stream, subject := range map[string]string{
		streams.Invalidations: events.InvalidationSubject, streams.Receipts: events.ReceiptSubject,
	} {
		go func() { ended <- f.follow(ctx, stream, subject+f.Services, lines) }()
	}
	go func() { ended <- f.followNotices(ctx, lines) }()
	for {
		select {
		case l := <-lines:
			if err := f.print(l); err != nil {
				return err
			}
		case err := <-ended:
			return err
		}
	}
}

// line is one message of either stream.
type line struct {
	At      time.Time `json:"at"`     // when the broker stored it
	Kind    string    `json:"kind"`   // event, receipt, notice or untrusted
	Target  string    `json:"target"` // for a notice, the app
	What    string    `json:"what"`
	Message any       `json:"message,omitzero"`
}

func (f Feed) follow(ctx context.Context, stream, subject string, lines chan<- line) error {
	policy := jetstream.DeliverNewPolicy
	if f.All {
		policy = jetstream.DeliverAllPolicy
	}
	consumer, err := f.Session.JetStream.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}, DeliverPolicy: policy})
	if err != nil {
		return process.Unreachable(fmt.Errorf("read %s: %w", stream, err))
	}
	iterator, err := consumer.Messages(jetstream.PullMaxMessages(consume.AtMost(consumer, jetstream.DefaultMaxMessages)))
	if err != nil {
		return process.Unreachable(fmt.Errorf("read %s: %w", stream, err))
	}
	defer iterator.Stop()
	for {
		msg, err := iterator.Next(jetstream.NextContext(ctx))
		if errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return process.Unreachable(fmt.Errorf("read %s: %w", stream, err))
		}
		select {
		case lines <- describe(f.Session.Trust, stream, msg):
		case <-ctx.Done():
			return nil
		}
	}
}

// describe says what a message means, if the registry signed it.
func describe(trust events.Trust, stream string, msg jetstream.Msg) line {
	l := line{At: time.Now().UTC()}
	if meta, err := msg.Metadata(); err == nil {
		l.At = meta.Timestamp.UTC()
		place := meta.Sequence.Stream
		if stream == streams.Receipts {
			place = 0
		}
		trust = trust.At(meta.Timestamp, place)
	}
	var err error
	if stream == streams.Receipts {
		var r events.Receipt
		if r, err = trust.Receipt(msg.Subject(), msg.Data()); err == nil {
			l.Kind, l.Target, l.What, l.Message = "receipt", r.Target.String(), outcome(r), ReceiptView(r)
		}
	} else {
		var e events.Invalidation
		if e, err = trust.Invalidation(msg.Subject(), msg.Data()); err == nil {
			l.Kind, l.Target, l.What, l.Message = "event", e.Target.String(), eventText(e), eventView(e)
		}
	}
	if err != nil {
		l.Kind, l.Target, l.What = "untrusted", msg.Subject(), err.Error()
	}
	return l
}

func outcome(r events.Receipt) string {
	if r.Event == events.RequestRejected {
		return fmt.Sprintf("refused: %s: %s", r.Reason, r.Detail)
	}
	return fmt.Sprintf("committed as sequence %d", r.Sequence)
}

func eventText(e events.Invalidation) string {
	text := fmt.Sprintf("%s, sequence %d", e.Event, e.Sequence)
	if !e.NewKey.IsZero() {
		text += ", new key " + e.NewKey.String()
	}
	if e.Event == events.KeyRotation {
		text += ", old key ends " + printable.Date(e.GracePeriodExpiry)
	}
	return text
}

// eventJSON is an event for programs.
type eventJSON struct {
	Event             events.EventKind `json:"event"`
	Sequence          int64            `json:"sequence"`
	OldPublicKey      events.PublicKey `json:"old_public_key,omitzero"`
	NewPublicKey      events.PublicKey `json:"new_public_key,omitzero"`
	GracePeriodExpiry int64            `json:"grace_period_expiry"`
	Timestamp         int64            `json:"timestamp"`
	Nonce             events.Nonce     `json:"nonce"`
}

func eventView(e events.Invalidation) eventJSON {
	return eventJSON{e.Event, e.Sequence, e.OldKey, e.NewKey, e.GracePeriodExpiry, e.Timestamp, e.Nonce}
}

func (f Feed) print(l line) error {
	if f.JSON {
		return process.PrintJSON(l)
	}
	at := l.At.Local().Format("15:04:05.000")
	if time.Since(l.At).Abs() >= printable.Today {
		at = l.At.Local().Format(time.DateTime)
	}
	return process.Print("%s  %-9s %s  %s\n", at, l.Kind, l.Target, l.What)
}

// noticesAtOnce is how many notices may wait. They are few, and each replica of the registry
// publishes the same ones.
const noticesAtOnce = 64

// followNotices receives the registry's notices about apps. No stream has them: `omi-registry app
// show` has what was said earlier, or while the broker was away.
func (f Feed) followNotices(ctx context.Context, lines chan<- line) error {
	heard := make(chan *nats.Msg, noticesAtOnce)
	subscription, err := f.Session.Conn.ChanSubscribe(events.NoticeSubject+cmp.Or(f.App, ">"), heard)
	if err != nil {
		return process.Unreachable(fmt.Errorf("hear notices: %w", err))
	}
	defer func() { _ = subscription.Unsubscribe() }()
	var last [sha256.Size]byte
	for {
		select {
		case m := <-heard:
			sum := sha256.Sum256(m.Data)
			if sum == last {
				continue // from another replica
			}
			last = sum
			select {
			case lines <- describeNotice(f.Session.Trust, m):
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func describeNotice(trust events.Trust, m *nats.Msg) line {
	l := line{At: time.Now().UTC()}
	n, err := trust.Notice(m.Subject, m.Data)
	if err != nil {
		l.Kind, l.Target, l.What = "untrusted", m.Subject, err.Error()
		return l
	}
	l.Kind, l.Target = "notice", n.App.String()
	l.What = fmt.Sprintf("%s, new Master Key %s; %s can no longer sign", n.Event, n.NewKey, n.OldKey)
	l.Message = noticeJSON{n.Event, n.OldKey, n.NewKey, n.Timestamp}
	return l
}

// noticeJSON is a notice for programs.
type noticeJSON struct {
	Event        events.NoticeKind `json:"event"`
	OldPublicKey events.PublicKey  `json:"old_public_key"`
	NewPublicKey events.PublicKey  `json:"new_public_key"`
	Timestamp    int64             `json:"timestamp"`
}
