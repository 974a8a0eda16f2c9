package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/request"
)

// What happens to a request on its way, as the demo shows it.
const (
	storedByBroker   = "stored by the broker"
	committed        = "committed by the registry, with the event in its outbox"
	published        = "published: the signed invalidation is on its way"
	answered         = "answered: the service has its receipt"
	appliedByAuth    = "applied by Auth"
	appliedByBilling = "applied by Billing"
)

// mark says that something happened to the change of this sequence.
type mark struct {
	what     string
	sequence int64
	at       time.Time
	receipt  events.Receipt // of a receipt
}

// marker returns a function that marks changes.
func (d *demo) marker(what string) func([]events.Invalidation) {
	return func(batch []events.Invalidation) {
		for _, e := range batch {
			d.marks <- mark{what: what, sequence: e.Sequence, at: time.Now()}
		}
	}
}

// observe marks events and receipts as they pass, over a connection that does nothing else.
func (d *demo) observe() error {
	nc, _, err := d.stack.connect("omi-demo-observer", d.log)
	if err != nil {
		return err
	}
	trust := d.session.trust
	_, err = nc.Subscribe(events.ReceiptSubject+d.target.App.String()+".*", func(m *nats.Msg) {
		if r, err := trust.Receipt(m.Subject, m.Data); err == nil {
			d.marks <- mark{what: answered, sequence: r.Sequence, at: time.Now(), receipt: r}
		}
	})
	if err != nil {
		return fmt.Errorf("listen to receipts: %w", err)
	}
	_, err = nc.Subscribe(events.InvalidationSubject+d.target.String(), func(m *nats.Msg) {
		at := time.Now()
		if e, err := trust.Invalidation(m.Subject, m.Data); err == nil {
			d.marks <- mark{what: published, sequence: e.Sequence, at: at}
		}
	})
	if err != nil {
		return fmt.Errorf("listen to events: %w", err)
	}
	return nc.Flush()
}

// change sends a request that stands, and shows what happens to it until both subscribers have applied it. The new
// key is kept for [demo.keyOf].
func (d *demo) change(ctx context.Context, draft events.Draft, by events.SigningKey) (events.Receipt, error) {
	draft.NewKey = events.GenerateSigningKey()
	d.clients.announce(draft.NewKey)
	m, err := newMessage(draft, by)
	if err != nil {
		return events.Receipt{}, err
	}
	d.sequence++
	d.last = m
	sent := time.Now()
	if err := d.session.sender().Publish(ctx, m); err != nil {
		return events.Receipt{}, err
	}
	d.step(sent, time.Now(), storedByBroker)
	return d.follow(ctx, sent)
}

// follow waits for the five marks of the present sequence, and shows them in the order in which they happened.
func (d *demo) follow(ctx context.Context, sent time.Time) (receipt events.Receipt, err error) {
	seen := map[string]mark{}
	for len(seen) < 5 {
		select {
		case <-ctx.Done():
			return receipt, fmt.Errorf("wait for sequence %d to be applied: %w", d.sequence, ctx.Err())
		case m := <-d.marks:
			if m.receipt.Event == events.RequestRejected {
				return receipt, fmt.Errorf("the request was refused: %s: %s", m.receipt.Reason, m.receipt.Detail)
			}
			if _, again := seen[m.what]; m.sequence == d.sequence && !again {
				seen[m.what] = m
			}
		}
	}
	steps := slices.SortedFunc(maps.Values(seen), func(a, b mark) int { return a.at.Compare(b.at) })
	for _, m := range steps {
		d.step(sent, m.at, m.what)
	}
	last := seen[appliedByAuth].at
	if billing := seen[appliedByBilling].at; billing.After(last) {
		last = billing
	}
	d.applied = append(d.applied, last.Sub(sent))
	return seen[answered].receipt, nil
}

func (d *demo) step(sent, at time.Time, what string) {
	fmt.Fprintf(d.out, "%7.3f s    +%6.2f ms  %s\n", at.Sub(d.began).Seconds(), float64(at.Sub(sent).Microseconds())/1000, what)
}

// keyOf returns the private key that a receipt made current.
func (d *demo) keyOf(r events.Receipt) events.SigningKey {
	return d.clients.announced(r.PublicKey)
}

// awaitPropagation asks the registry's lookup until every durable has acknowledged the last event, or half of the grace
// period is over: then the old key must not be signed with for much longer, and Auth asks about one that it doesn't know.
func (d *demo) awaitPropagation(ctx context.Context) error {
	for half := time.Now().Add(demoGrace / 2); time.Now().Before(half); {
		record, err := d.session.record(ctx, d.target)
		if err != nil {
			return err
		}
		everyone := len(record.Propagation) > 0
		for _, applied := range record.Propagation {
			everyone = everyone && applied
		}
		if everyone {
			d.say("every durable has applied it: the clients sign with the new key now")
			return nil
		}
		if err := d.pauseFor(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	d.say("half of the grace period is over: the clients sign with the new key now")
	return nil
}

// badRequests sends what must be refused, and a replay, which must change nothing.
func (d *demo) badRequests(ctx context.Context) error {
	fmt.Fprint(d.out, "\nRequests that must not stand\n")
	forged := newDraft(events.Rotation, d.target)
	forged.NewKey = events.GenerateSigningKey()
	stale := newDraft(events.Rotation, d.target)
	stale.NewKey, stale.Timestamp = events.GenerateSigningKey(), time.Now().Add(-time.Hour).Unix()

	for _, bad := range []struct {
		what  string
		draft events.Draft
		by    events.SigningKey
	}{
		{"forged: signed by somebody else's key", forged, events.GenerateSigningKey()},
		{"stale: signed an hour ago, published now", stale, d.clients.key()},
	} {
		m, err := newMessage(bad.draft, bad.by)
		if err != nil {
			return err
		}
		if err := d.sendBad(ctx, bad.what, m); err != nil {
			return err
		}
	}
	elsewhere, again := d.last, d.last
	other := d.target
	other.Service, _ = events.ParseServiceID(demoOther)
	elsewhere.Subject = events.RotationSubject + other.String()
	if err := d.sendBad(ctx, "replayed: the last rotation, sent for another service", elsewhere); err != nil {
		return err
	}
	return d.sendBad(ctx, "replayed: the last rotation, byte for byte", again)
}

// sendBad publishes a message as an attacker would, without the id by which the broker knows a repetition.
func (d *demo) sendBad(ctx context.Context, what string, m request.Message) error {
	sent := time.Now()
	if _, err := d.session.js.Publish(ctx, m.Subject, []byte(m.Payload)); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the answer to a request that is %s: %w", what, ctx.Err())
		case got := <-d.marks:
			if got.receipt.RequestNonce != m.Nonce {
				continue
			}
			if got.receipt.Event == events.RequestRejected {
				d.rejected[string(got.receipt.Reason)]++
				d.step(sent, got.at, what+": "+string(got.receipt.Reason))
			} else {
				d.repeated++
				d.step(sent, got.at, what+": its first receipt again, and nothing changes")
			}
			return nil
		}
	}
}
