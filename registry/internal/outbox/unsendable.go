package outbox

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

const (
	sendAgainEvery = time.Minute
	faultsAtOnce   = 10          // lines in the log: a setting may affect every message
	faultsEach     = time.Minute // until one more line is allowed
	// skippedKept is how long a message is remembered that is not in the outbox any more, because
	// another replica sent it.
	skippedKept = 5 * sendAgainEvery
)

// The codes of nats-server's errors (server/errors.json) that are about a single message.
const (
	messageTooLarge jetstream.ErrorCode = 10054
	headerTooLarge  jetstream.ErrorCode = 10097
)

// itsOwnFault reports whether a message can't be sent as it is, while others can.
func itsOwnFault(err error) bool {
	if errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject) {
		return true
	}
	refused := (*jetstream.APIError)(nil)
	return errors.As(err, &refused) && (refused.ErrorCode == messageTooLarge || refused.ErrorCode == headerTooLarge)
}

// unsendable knows the messages of the outbox that can't be sent as they are. They are skipped, so
// that they don't hold up others, and tried again every minute and after a reconnect, because the
// broker's settings may have changed.
//
// A later event of the same service goes out before one that is skipped. No reader depends on the
// order of events (docs/protocol.md §7.2), and a revocation must not wait for a rotation that can't
// be sent.
type unsendable struct {
	log   *slog.Logger
	lines rate.Sometimes

	mu      sync.Mutex
	changes map[decision.OutboxPlace]*skipped
}

// skipped is a change with a message that can't be sent.
type skipped struct {
	next, seen time.Time
	receipt    decision.Message // was stored, and is not sent again
	receiptAt  time.Time        // when; zero: it was not
}

func newUnsendable(log *slog.Logger, metrics prometheus.Registerer) *unsendable {
	u := &unsendable{log: log, changes: map[decision.OutboxPlace]*skipped{}, lines: rate.Sometimes{First: faultsAtOnce, Interval: faultsEach}}
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_unsendable_changes",
		Help: "Committed changes with an event or receipt that the broker refuses as it is; the registry retries them every minute.",
	}, func() float64 { return float64(u.count()) }))
	return u
}

func (u *unsendable) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.changes)
}

// has reports whether this change is skipped.
func (u *unsendable) has(place decision.OutboxPlace) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, is := u.changes[place]
	return is
}

// sendable returns the messages to send now.
func (u *unsendable) sendable(messages []decision.Message, now time.Time) []decision.Message {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.changes) == 0 {
		return messages
	}
	list := make([]decision.Message, 0, len(messages))
	for i := range messages {
		m := &messages[i]
		one := u.changes[m.Place]
		if one != nil {
			one.seen = now
		}
		if one == nil || !now.Before(one.next) && (one.receiptAt.IsZero() || m.IsEvent()) {
			list = append(list, *m)
		}
	}
	for place, one := range u.changes {
		if now.Sub(one.seen) > skippedKept {
			delete(u.changes, place)
		}
	}
	return list
}

// record takes the result of sending messages. It returns the receipts that were stored earlier, of
// changes whose event is stored now.
func (u *unsendable) record(messages []decision.Message, sent *sendResult, now time.Time) (complete []decision.Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range sent.faults {
		one := u.changes[messages[i].Place]
		if one == nil {
			one = &skipped{}
			u.changes[messages[i].Place] = one
			u.logFault(&messages[i], sent.faults[i])
		}
		one.next, one.seen = now.Add(sendAgainEvery), now
	}
	if len(u.changes) == 0 {
		return nil
	}
	for i, m := range messages {
		if one := u.changes[m.Place]; one != nil && sent.stored[i] && !m.IsEvent() {
			one.receipt, one.receiptAt = m, now
		}
	}
	for i, m := range messages {
		one := u.changes[m.Place]
		switch {
		case one == nil || !sent.stored[i] || one.receiptAt.IsZero():
			continue
		case m.IsEvent() && one.receiptAt.Before(now):
			complete = append(complete, one.receipt)
		case !m.IsEvent() && m.Parts > 1:
			continue // its event is not stored
		}
		delete(u.changes, m.Place)
	}
	return complete
}

func (u *unsendable) logFault(m *decision.Message, err error) {
	sequence, _ := events.NamesOf(m.Payload)
	u.lines.Do(func() {
		u.log.Error("a committed change can't be announced: the broker refuses a message as it is. It is skipped, and tried again every minute",
			"subject", m.Subject, "sequence", sequence, "bytes", len(m.Payload), "error", err,
			"do", "allow larger messages: max_payload in the broker's configuration, max_msg_size of the stream")
	})
}

// retryNow makes all of them due at once.
func (u *unsendable) retryNow() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, one := range u.changes {
		one.next = time.Time{}
	}
}
