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

// Watch is what `omi watch` asks for: its grammar.
type Watch struct {
	session.Connection `embed:""`
	AppID              string `name:"app-id" env:"OMI_APP_ID" placeholder:"ID" help:"Only this app's services (all apps)."`
	ServiceID          string `name:"service-id" env:"OMI_SERVICE_ID" placeholder:"ID" help:"Only this service."`
	All                bool   `help:"Begin with the messages that the streams hold."`
}

// Help is shown by --help.
func (*Watch) Help() string {
	return `Runs until Ctrl-C. If the broker goes away, the command waits for it, and then shows the
messages that came meanwhile. A message that the registry did not sign is shown as untrusted,
because anyone may publish where the broker lets them. A replaced Master Key is shown when it
happens, as a notice of its app; omi-registry app show lists earlier ones.

  # new messages of all services
  omi watch
  # one app: first what the streams hold, and then new messages
  omi watch --all --app-id org.example.dev
  # one object for each message
  omi watch --json`
}

// Run shows events and receipts until a signal comes.
func (c *Watch) Run() error {
	services, err := c.services()
	if err != nil {
		return err
	}
	return c.With(0, func(ctx context.Context, s *session.Session) error {
		return c.show(ctx, s, services)
	})
}

// services returns the end of the subjects that the flags ask for.
func (c *Watch) services() (string, error) {
	if c.AppID == "" {
		if c.ServiceID != "" {
			return "", process.Usagef("--service-id goes with --app-id")
		}
		return ">", nil
	}
	app, err := events.ParseAppID(c.AppID)
	if err != nil {
		return "", process.Usagef("--app-id: %w", err)
	}
	if c.ServiceID == "" {
		return app.String() + ".>", nil
	}
	t, err := session.TargetFlags{AppID: c.AppID, ServiceID: c.ServiceID}.Target()
	return t.String(), err
}

// show prints messages as they come, until ctx ends. services is the end of their subjects.
func (c *Watch) show(ctx context.Context, s *session.Session, services string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.Conn.SetDisconnectErrHandler(func(*nats.Conn, error) { tell("the broker is gone, waiting for it") })
	s.Conn.SetReconnectHandler(func(*nats.Conn) { tell("the broker is back") })
	defer s.Conn.SetDisconnectErrHandler(nil) // after this, the command disconnects on purpose
	lines, ended := make(chan line), make(chan error, 3)
	for stream, subject := range map[string]string{
		streams.Invalidations: events.InvalidationSubject, streams.Receipts: events.ReceiptSubject,
	} {
		go func() { ended <- c.follow(ctx, s, stream, subject+services, lines) }()
	}
	go func() { ended <- c.followNotices(ctx, s, lines) }()
	for {
		select {
		case l := <-lines:
			if err := c.print(l); err != nil {
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

func (c *Watch) follow(ctx context.Context, s *session.Session, stream, subject string, lines chan<- line) error {
	policy := jetstream.DeliverNewPolicy
	if c.All {
		policy = jetstream.DeliverAllPolicy
	}
	consumer, err := s.JetStream.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}, DeliverPolicy: policy})
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
		case lines <- describe(s.Trust, stream, msg):
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
			l.Kind, l.Target, l.What, l.Message = "event", e.Target.String(), eventText(e), eventJSON{
				e.Event, e.Sequence, e.OldKey, e.NewKey, e.GracePeriodExpiry, e.Timestamp, e.Nonce,
			}
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

func (c *Watch) print(l line) error {
	if c.JSON {
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
func (c *Watch) followNotices(ctx context.Context, s *session.Session, lines chan<- line) error {
	heard := make(chan *nats.Msg, noticesAtOnce)
	subscription, err := s.Conn.ChanSubscribe(events.NoticeSubject+cmp.Or(c.AppID, ">"), heard)
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
			case lines <- describeNotice(s.Trust, m):
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
