package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

const (
	idBytes     = 8
	detailBytes = 1000 // of what a panic or an error says

	retryEvery  = time.Second // how often to look for dead letters to retry
	retryAtMost = 64          // dead letters at a time
	// retryWithin is the time to decide one and publish its receipt, before another replica may
	// try.
	retryWithin = 15 * time.Second
)

// newDeadLetter returns what is kept of a message. Its id is a hash, so that the rows of a day
// spread over a cluster. A message that is delivered again after it was set aside is the same row.
// One at the same place of another stream is not.
func newDeadLetter(m *queue.Message, why consume.Fault, now time.Time) ledger.DeadLetter {
	name := fmt.Sprintf("%d %d %s ", m.Stored.UnixNano(), m.Sequence, m.Subject)
	hash := sha256.Sum256(append([]byte(name), m.Data...))
	return ledger.DeadLetter{
		StreamCreatedAt: m.Payload.Place.Stream,
		ID:              hex.EncodeToString(hash[:idBytes]), Subject: printable.Text(m.Subject), StreamSequence: m.Sequence,
		StoredAt: m.Stored.Unix(), Reason: why.Reason, Detail: detailOf(why.Detail), Tries: why.Tries,
		SetAsideAt: now.Unix(), Payload: m.Data,
	}
}

func detailOf(text string) string {
	if len(text) > detailBytes {
		end := detailBytes
		for !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end] + "…"
	}
	return printable.Text(text)
}

// letterBox sets aside the requests that can't be decided, and has them decided again when an
// operator asks for it:
//
//	consume ──▶ keep ──▶ dead_letters ──▶ run ──▶ the same handler ──▶ decided: deleted
//	                          ▲                        │
//	                          └────────────────────────┘ failed again
//
// It does not publish them to the stream again, because the stream would store them at a new time,
// which may be outside the window of their timestamp (docs/protocol.md §6).
type letterBox struct {
	letters *ledger.Letters
	handle  consume.Handler[queue.Request]
	log     *slog.Logger
	metrics *metrics
	now     func() time.Time
}

// keep keeps a message that the consumer gives up on.
func (d *letterBox) keep(ctx context.Context, m *queue.Message, why consume.Fault) error {
	l := newDeadLetter(m, why, d.now())
	if err := d.letters.Put(ctx, l); err != nil {
		return err
	}
	d.metrics.letters.WithLabelValues(l.Reason).Inc()
	d.log.Error("a request can't be decided; it waits as a dead letter", "id", l.ID, "subject", l.Subject, "reason", l.Reason,
		"detail", l.Detail, "see", "omi-registry deadletters show "+l.ID, "then", "omi-registry deadletters retry "+l.ID)
	return nil
}

// run decides dead letters again when an operator asks for it, until ctx ends.
func (d *letterBox) run(ctx context.Context) {
	ticker := time.NewTicker(retryEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := d.retry(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("retrying dead letters failed, trying again", "error", err)
		}
	}
}

func (d *letterBox) retry(ctx context.Context) error {
	for {
		asked, err := d.letters.Asked(ctx, d.now())
		if err != nil || !asked {
			return err
		}
		letters, err := d.letters.Claim(ctx, retryAtMost, d.now(), retryWithin)
		if err != nil || len(letters) == 0 {
			return err
		}
		for _, l := range letters {
			if err := d.decide(ctx, l); ctx.Err() != nil {
				return ctx.Err()
			} else if err != nil {
				d.log.Warn("a dead letter is not decided yet, trying again", "id", l.ID, "error", err)
			}
		}
	}
}

// decide has one dead letter decided. If it returns an error, the fault is the registry's: the
// letter's lease ends, and it is tried again.
func (d *letterBox) decide(ctx context.Context, l ledger.DeadLetter) error {
	ctx, cancel := context.WithTimeout(ctx, retryWithin)
	defer cancel()
	again := &letterMessage{letter: l, settled: make(chan bool, 1)}
	why, err := d.try(ctx, again)
	switch {
	case err == nil:
		d.log.Info("a dead letter is decided", "id", l.ID, "subject", l.Subject)
		return d.letters.Delete(ctx, l.ID)
	case ctx.Err() != nil, errors.Is(err, errUnanswered), unavailable(err):
		return err
	}
	l.Reason, l.Detail, l.Tries, l.SetAsideAt = why.Reason, detailOf(why.Detail), why.Tries, d.now().Unix()
	d.log.Error("a dead letter can't be decided again", "id", l.ID, "subject", l.Subject, "reason", l.Reason, "detail", l.Detail)
	return d.letters.Put(ctx, l)
}

// errUnanswered means that the request was given back, for example because its receipt could not be
// published.
var errUnanswered = errors.New("it was given back")

// try hands a dead letter to the handler once, and waits until it is answered.
func (d *letterBox) try(ctx context.Context, again *letterMessage) (why consume.Fault, err error) {
	defer func() {
		if v := recover(); v != nil {
			if again.acknowledged() {
				return // it was committed before
			}
			why, err = consume.Fault{Reason: consume.Panics, Detail: fmt.Sprint(v), Tries: 1}, errPanicked
			d.log.Error("a dead letter makes the handler panic", "id", again.letter.ID, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	m := again.message()
	if err := d.handle(ctx, []*queue.Message{m}); err != nil {
		return consume.Fault{Reason: consume.Fails, Detail: err.Error(), Tries: 1}, err
	}
	if !m.Kept() {
		return why, nil // there is no one to answer
	}
	select {
	case answered := <-again.settled:
		if !answered {
			return why, errUnanswered
		}
		return why, nil
	case <-ctx.Done():
		return why, ctx.Err()
	}
}

var errPanicked = errors.New("the handler panics")

// letterMessage is a dead letter in the form of the message that it was, so that the same handler
// takes it. Settling it is reported on settled.
type letterMessage struct {
	letter  ledger.DeadLetter
	settled chan bool // true: it is done
}

// message returns the message. It has not been delivered, so its place in the stream is known to
// the decision only. An earlier try may have answered it.
func (m *letterMessage) message() *queue.Message {
	return &queue.Message{
		Acknowledger: m, Subject: m.letter.Subject, Data: m.letter.Payload, Stored: time.Unix(m.letter.StoredAt, 0), Delivered: 1,
		Payload: queue.Request{Place: decision.Place{Stream: m.letter.StreamCreatedAt, Sequence: int64(m.letter.StreamSequence)}, Redelivered: true, Paid: true},
	}
}

// Ack implements [consume.Acknowledger].
func (m *letterMessage) Ack() error { return m.settle(true) }

// NakWithDelay implements [consume.Acknowledger].
func (m *letterMessage) NakWithDelay(time.Duration) error { return m.settle(false) }

// TermWithReason implements [consume.Acknowledger].
func (m *letterMessage) TermWithReason(string) error { return m.settle(true) }

// InProgress implements [consume.Acknowledger].
func (m *letterMessage) InProgress() error { return nil }

// acknowledged reports whether the letter is done.
func (m *letterMessage) acknowledged() bool {
	select {
	case done := <-m.settled:
		return done
	default:
		return false
	}
}

func (m *letterMessage) settle(done bool) error {
	select {
	case m.settled <- done:
		return nil
	default:
		return jetstream.ErrMsgAlreadyAckd
	}
}
