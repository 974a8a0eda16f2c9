package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
)

// bindingsAtOnce is how many bindings are in memory at a time.
const bindingsAtOnce = 8192

// publishBindings fills the stream of events with one binding for each service, signed by the
// registry's key.
func (b *run) publishBindings(ctx context.Context, key events.SigningKey) error {
	n := b.load.Bindings()
	b.progress.phase("binding services", n)
	for from := 0; from < n && ctx.Err() == nil; from += bindingsAtOnce {
		messages := make([]*nats.Msg, min(bindingsAtOnce, n-from))
		parallel.Each(len(messages), 16, func(i int) {
			event, payload := b.load.Binding(from+i, origin, key)
			messages[i] = message(event.Subject(), event.Nonce.String(), payload)
		})
		for _, m := range messages {
			if err := b.publish(m); err != nil {
				return err
			}
		}
		b.progress.set(int64(from))
	}
	return b.confirmed(ctx)
}

func message(subject, id string, payload []byte) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: payload, Header: nats.Header{jetstream.MsgIDHeader: {id}}}
}

// confirmed waits until the broker has confirmed every publication.
func (b *run) confirmed(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.js.PublishAsyncComplete():
	}
	if n := b.unstored.Load(); n > 0 {
		return fmt.Errorf("the broker did not take %d messages", n)
	}
	return nil
}

// sign makes the requests.
func (b *run) sign(ctx context.Context) ([]Request, error) {
	b.progress.phase("signing requests", b.load.Rotations)
	var signed atomic.Int64
	showing, stop := context.WithCancel(ctx)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		for b.look(showing, lookEvery, signed.Load) == nil {
		}
	}()
	now := time.Now()
	requests, err := b.load.Sign(ctx, func(i int) time.Time { return now.Add(b.due(i)) }, &signed)
	stop()
	<-shown
	return requests, err
}

// due returns when a rotation is to be published, counted from the start.
func (b *run) due(rotation int) time.Duration {
	if b.flags.Rate == 0 {
		return 0
	}
	return time.Duration(float64(rotation) / b.flags.Rate * float64(time.Second))
}

// publish gives a message to the broker. It waits while too many messages are unconfirmed.
func (b *run) publish(m *nats.Msg) error {
	if _, err := b.js.PublishMsgAsync(m, jetstream.WithStallWait(stalledAfter)); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

func (b *run) publishRequest(r *Request) error {
	return b.publish(message(r.Subject, r.MsgID, r.Payload))
}

// publishAll publishes the backlog.
func (b *run) publishAll(ctx context.Context, requests []Request) error {
	for i := range requests {
		if err := b.publishRequest(&requests[i]); err != nil {
			return err
		}
		if i%1024 == 0 {
			b.progress.set(int64(i))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	return b.confirmed(ctx)
}

// drive publishes requests as the loop demands (a backlog is published already), and waits until
// both subscribers have applied everything, or nothing moves any more.
func (b *run) drive(ctx context.Context, began time.Time, requests []Request) error {
	published := make(chan error, 1)
	b.parts.Go(func() { published <- b.generate(ctx, began, requests) })
	moved, last := time.Now(), int64(-1)
	for {
		select {
		case err := <-published:
			if err != nil {
				return err
			}
			published, moved = nil, time.Now()
		case <-b.recorder.Done():
			return nil
		default:
		}
		if now := b.recorder.Applied(); now != last || b.flags.mode() == modeOpen && published != nil {
			moved, last = time.Now(), now
		}
		if time.Since(moved) > stalledAfter {
			return nil // the missing ones count as lost
		}
		if err := b.look(ctx, lookEvery, b.recorder.Applied); err != nil {
			return err
		}
	}
}

// generate is the load generator of the loops.
func (b *run) generate(ctx context.Context, began time.Time, requests []Request) error {
	for i := range requests {
		at, err := b.turn(ctx, began, i)
		if err != nil {
			return err
		}
		b.recorder.Published(i, at)
		if err := b.publishRequest(&requests[i]); err != nil {
			return err
		}
	}
	return nil
}

// turn waits until a rotation may be published, and returns the time from which its latency counts.
// In an open loop that is the time when it was due, and not when the generator got to it: otherwise
// a system that holds up its load would look quick.
func (b *run) turn(ctx context.Context, began time.Time, rotation int) (time.Time, error) {
	if b.flags.mode() == modeClosed {
		select {
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case <-b.recorder.Released():
			return time.Now(), nil
		}
	}
	due := began.Add(b.due(rotation))
	return due, SleepUntil(ctx, due)
}

// exactly is how long before the time SleepUntil stops relying on the runtime's clock, which may be
// late by a millisecond.
const exactly = 2 * time.Millisecond

// SleepUntil waits until a time, more precisely than a timer: a load generator that is late makes
// the system look slow. The error is the context's cause. It ignores the context in the last
// milliseconds.
func SleepUntil(ctx context.Context, at time.Time) error {
	if wait := time.Until(at) - exactly; wait > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if rest := time.Until(at); rest > 0 {
		if err := sleep(rest); err != nil {
			return fmt.Errorf("sleep: %w", err)
		}
	}
	return nil
}
