package demo

import (
	"context"
	"crypto"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

// What happens to a request on its way, as the demo shows it.
const (
	sent             = "sent"
	storedByBroker   = "stored by the broker"
	committed        = "committed by the registry, with the event in its outbox"
	published        = "heard on its subject: the signed event"
	answered         = "answered: the service has its receipt"
	appliedByAuth    = "applied by Auth"
	appliedByBilling = "applied by Billing"
)

// stepsOfAChange is how many of these there are.
const stepsOfAChange = 7

// mark says that something happened to a change.
type mark struct {
	what     string
	sequence int64 // 0: the change that is under way
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

// told marks what the service's client reports.
func (d *demo) told(e client.Event) {
	switch e.Kind {
	case client.Requested:
		d.marks <- mark{what: sent, at: e.At}
	case client.Stored:
		d.marks <- mark{what: storedByBroker, at: e.At}
	case client.Applied:
		d.heard.Add(1)
	}
}

// observe marks events and receipts as they pass, over a connection of its own, and keeps rotations
// for the replay.
func (d *demo) observe() error {
	nc, _, err := d.stack.Connect("omi-demo-observer", d.log)
	if err != nil {
		return err
	}
	trust := d.session.Trust
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
	if d.overheard, err = nc.SubscribeSync(events.RotationSubject + d.target.String()); err != nil {
		return fmt.Errorf("listen to requests: %w", err)
	}
	return nc.Flush()
}

// change makes a change, and shows its steps until both subscribers have applied it.
func (d *demo) change(ctx context.Context, ask func(context.Context) (events.Receipt, error)) (events.Receipt, error) {
	d.sequence++
	d.heard.Store(0)
	receipt, err := ask(ctx)
	if err != nil {
		return receipt, err
	}
	return receipt, d.follow(ctx)
}

// follow waits for the marks of the present change, and shows them in the order in which they
// happened.
func (d *demo) follow(ctx context.Context) error {
	seen := map[string]mark{}
	for len(seen) < stepsOfAChange {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for sequence %d to be applied: %w", d.sequence, ctx.Err())
		case m := <-d.marks:
			if _, again := seen[m.what]; !again && (m.sequence == 0 || m.sequence == d.sequence) {
				seen[m.what] = m
			}
		}
	}
	began := seen[sent].at
	delete(seen, sent)
	for _, m := range slices.SortedFunc(maps.Values(seen), func(a, b mark) int { return a.at.Compare(b.at) }) {
		d.step(began, m.at, m.what)
	}
	last := seen[appliedByAuth].at
	if billing := seen[appliedByBilling].at; billing.After(last) {
		last = billing
	}
	d.applied = append(d.applied, last.Sub(began))
	return nil
}

func (d *demo) step(began, at time.Time, what string) {
	printable.Fprintf(d.out, "%7.3f s    +%6.2f ms  %s\n", at.Sub(d.began).Seconds(), float64(at.Sub(began).Microseconds())/1000, what)
}

// changeKey changes the service's key, and returns the previous key once the new one signs.
func (d *demo) changeKey(ctx context.Context, ask func(context.Context) (events.Receipt, error)) (old crypto.Signer, err error) {
	if old, err = d.store.Signer(ctx, client.Current); err != nil {
		return nil, err
	}
	receipt, err := d.change(ctx, ask)
	if err != nil {
		return nil, err
	}
	if err := d.client.Settle(ctx); err != nil {
		return nil, err
	}
	d.clients.endsAt(old, receipt.GracePeriodExpiry)
	return old, nil
}

// badRequests sends requests that must be refused, and a replay, which must change nothing.
func (d *demo) badRequests(ctx context.Context) error {
	fmt.Fprint(d.out, "\nRequests that must be refused\n")
	current, _ := d.client.Signer().Key()
	forged := session.NewDraft(events.Rotation, d.target)
	forged.NewKey, forged.Origin = events.GenerateSigningKey(), d.session.Trust.Origin()
	stale := session.NewDraft(events.Rotation, d.target)
	stale.NewKey, stale.Timestamp, stale.Origin = events.GenerateSigningKey(), time.Now().Add(-time.Hour).Unix(), forged.Origin

	for _, bad := range []struct {
		what  string
		draft events.Draft
		by    crypto.Signer
	}{
		{"forged: signed by another key", forged, events.GenerateSigningKey().Private()},
		{"stale: signed an hour ago, published now", stale, current},
	} {
		m, err := registryclient.Sign(bad.draft, bad.by, bad.draft.NewKey.Private())
		if err != nil {
			return err
		}
		if err := d.sendBad(ctx, bad.what, m); err != nil {
			return err
		}
	}
	elsewhere, again, err := d.overhear(ctx)
	if err != nil {
		return err
	}
	if err := d.sendBad(ctx, "replayed: the last rotation, sent for another service", elsewhere); err != nil {
		return err
	}
	return d.sendBad(ctx, "replayed: the last rotation, byte for byte", again)
}

// overhear returns the last rotation in two forms, as anyone who may read the requests can send it
// again: for another service, and unchanged.
func (d *demo) overhear(ctx context.Context) (elsewhere, again registryclient.Message, err error) {
	for range d.rotations {
		msg, err := d.overheard.NextMsgWithContext(ctx)
		if err != nil {
			return elsewhere, again, fmt.Errorf("listen to requests: %w", err)
		}
		parsed, err := events.ParseRequest(msg.Subject, msg.Data)
		if err != nil {
			return elsewhere, again, err
		}
		again = registryclient.Message{Subject: msg.Subject, Nonce: parsed.Nonce, Payload: string(msg.Data)}
	}
	other := d.target
	other.Service, err = events.ParseServiceID(otherServiceID)
	elsewhere = again
	elsewhere.Subject = events.RotationSubject + other.String()
	return elsewhere, again, err
}

// sendBad publishes a message as an attacker would, without the id by which the broker recognises a
// repetition.
func (d *demo) sendBad(ctx context.Context, what string, m registryclient.Message) error {
	began := time.Now()
	if _, err := d.session.JetStream.Publish(ctx, m.Subject, []byte(m.Payload)); err != nil {
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
				d.step(began, got.at, what+": "+string(got.receipt.Reason))
			} else {
				d.repeated++
				d.step(began, got.at, what+": the first receipt again, and nothing changes")
			}
			return nil
		}
	}
}
