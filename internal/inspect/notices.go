package inspect

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
)

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
