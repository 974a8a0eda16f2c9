package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/streams"
)

const (
	// requestsEach leaves room in the 64 messages of a service that the streams keep: what was
	// published or refused twice counts there too, and the test reads all of it at the end.
	requestsEach = 24
	mostTry      = 3 * time.Second       // until an impatient developer sends again
	lookEach     = 30 * time.Millisecond // how often a patient one looks for the answer
)

// developer has one service after the other, and changes the keys of each without a pause.
// Everything that can be asked for is asked for, what must be refused too, and some of it again.
type developer struct {
	name    string
	patient bool // sends nothing again once the broker has it: the registries must see to the answer
	dice    *rand.Rand
	master  events.SigningKey
	app     events.AppID
	js      jetstream.JetStream
	trust   events.Trust
	answers *atomic.Int64 // to all developers

	services  []*service
	used      events.Nonce // the last that stood
	committed map[events.Nonce]events.Target
	refused   map[string]events.Target // by the hash of the message
	resent    map[string]bool          // of these, what the stream may have more than once
	again     int                      // messages sent more than once, on purpose or for want of an answer
	longest   time.Duration            // until an answer
}

// errWrong is an answer that must not be.
var errWrong = errors.New("a wrong answer")

// run works until working ends, and then brings what is under way to its end, unless ctx ends
// first.
func (d *developer) run(ctx, working context.Context) error {
	for working.Err() == nil {
		id, err := events.ParseServiceID(fmt.Sprintf("%s-%d", d.name, len(d.services)+1))
		if err != nil {
			return err
		}
		s := &service{target: events.Target{App: d.app, Service: id}}
		d.services = append(d.services, s)
		steps := []func(context.Context, *service) error{d.bind}
		for range requestsEach {
			steps = append(steps, d.next())
		}
		for i, step := range steps {
			if i > 0 && working.Err() != nil {
				break
			}
			if err := step(ctx, s); err != nil {
				return fmt.Errorf("%s, after %d changes: %w", s.target, len(s.events), err)
			}
		}
	}
	return nil
}

// next throws the dice for what to ask for.
func (d *developer) next() func(context.Context, *service) error {
	switch n := d.dice.IntN(100); {
	case n < 60:
		return d.rotate
	case n < 68:
		return d.reset
	case n < 74:
		return d.revoke
	default:
		return d.refuse
	}
}

func (d *developer) draft(s *service, kind events.RequestKind) events.Draft {
	draft := events.Draft{Kind: kind, Target: s.target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce()}
	if kind != events.Revocation {
		draft.NewKey = events.GenerateSigningKey()
	}
	return draft
}

func (d *developer) rotate(ctx context.Context, s *service) error {
	draft := d.draft(s, events.Rotation)
	if d.dice.IntN(4) == 0 {
		draft.GracePeriod = new(int64) // an emergency
	}
	return d.change(ctx, s, draft, s.current())
}

func (d *developer) bind(ctx context.Context, s *service) error {
	return d.change(ctx, s, d.draft(s, events.Binding), d.master)
}

func (d *developer) reset(ctx context.Context, s *service) error {
	return d.change(ctx, s, d.draft(s, events.Reset), d.master)
}

// revoke takes the service out of use, and binds it again.
func (d *developer) revoke(ctx context.Context, s *service) error {
	if err := d.change(ctx, s, d.draft(s, events.Revocation), d.master); err != nil {
		return err
	}
	if err := d.mustRefuse(ctx, s, d.draft(s, events.Rotation), s.current(), events.UnknownService); err != nil {
		return err
	}
	return d.bind(ctx, s)
}

// change asks for what stands, and sometimes a second time, byte for byte.
func (d *developer) change(ctx context.Context, s *service, draft events.Draft, by events.SigningKey) error {
	m, err := message(draft, by)
	if err != nil {
		return err
	}
	d.committed[draft.Nonce] = s.target
	receipt, err := d.ask(ctx, s.target, m, draft.MsgID())
	if err != nil {
		return err
	}
	if err := s.changed(&draft, &receipt); err != nil {
		return fmt.Errorf("%w: %w", errWrong, err)
	}
	d.used = draft.Nonce
	if d.dice.IntN(6) > 0 {
		return nil
	}
	d.again++ // without its id, by which JetStream would know it
	if err := d.publish(ctx, m, ""); err != nil && ctx.Err() != nil {
		return err
	}
	return nil
}

// refuse asks for what must not stand.
func (d *developer) refuse(ctx context.Context, s *service) error {
	rotation, current := d.draft(s, events.Rotation), s.current()
	switch d.dice.IntN(8) {
	case 0: // forged
		return d.mustRefuse(ctx, s, rotation, events.GenerateSigningKey(), events.InvalidSignature)
	case 1: // by the key before
		if len(s.lives) < 2 {
			return nil
		}
		return d.mustRefuse(ctx, s, rotation, s.lives[len(s.lives)-2].key, events.SupersededKey)
	case 2: // signed an hour ago
		rotation.Timestamp -= 3600
		return d.mustRefuse(ctx, s, rotation, current, events.TimestampOutOfWindow)
	case 3: // a key that is in use
		rotation.NewKey = current
		return d.mustRefuse(ctx, s, rotation, current, events.KeyInUse)
	case 4: // bound already
		return d.mustRefuse(ctx, s, d.draft(s, events.Binding), d.master, events.AlreadyBound)
	case 5: // the nonce of a request that stood, for another
		rotation.Nonce = d.used
		m, err := message(rotation, current)
		if err != nil {
			return err
		}
		return d.mustRefuseMessage(ctx, s, m, "", events.NonceReused) // JetStream would drop a known id
	case 6: // for another service
		elsewhere := rotation
		elsewhere.Target.Service, _ = events.ParseServiceID("elsewhere")
		m, err := message(elsewhere, current)
		if err != nil {
			return err
		}
		m.Subject = rotation.Subject()
		return d.mustRefuseMessage(ctx, s, m, events.RequestMsgID(m.Subject, m.Nonce), events.TargetMismatch)
	default: // no message at all
		garbage := registryclient.Message{Subject: rotation.Subject(), Payload: `{"version": "1.0", ` + rotation.Nonce.String()}
		return d.mustRefuseMessage(ctx, s, garbage, "", events.MalformedMessage)
	}
}

func (d *developer) mustRefuse(
	ctx context.Context, s *service, draft events.Draft, by events.SigningKey, want events.Reason,
) error {
	m, err := message(draft, by)
	if err != nil {
		return err
	}
	return d.mustRefuseMessage(ctx, s, m, draft.MsgID(), want)
}

func (d *developer) mustRefuseMessage(
	ctx context.Context, s *service, m registryclient.Message, id string, want events.Reason,
) error {
	d.refused[events.RequestHash([]byte(m.Payload))] = s.target
	receipt, err := d.ask(ctx, s.target, m, id)
	if err != nil {
		return err
	}
	if receipt.Event != events.RequestRejected || receipt.Reason != want {
		return fmt.Errorf("%w: %+v instead of %s", errWrong, receipt, want)
	}
	return nil
}

func message(draft events.Draft, by events.SigningKey) (registryclient.Message, error) {
	if draft.Kind == events.Revocation {
		return registryclient.Sign(draft, by.Private(), nil)
	}
	return registryclient.Sign(draft, by.Private(), draft.NewKey.Private())
}

// ask sends a message until the broker has it, and waits for its receipt. Without an id the broker
// knows it from no other.
func (d *developer) ask(
	ctx context.Context, target events.Target, m registryclient.Message, id string,
) (receipt events.Receipt, err error) {
	began := time.Now()
	if d.patient || id == "" {
		receipt, err = d.askOnce(ctx, target, m, id)
	} else {
		receipt, err = d.askAgain(ctx, target, m)
	}
	if took := time.Since(began); took > d.longest {
		d.longest = took
	}
	if err != nil {
		return receipt, fmt.Errorf("no answer to request %s: %w", m.Nonce, err)
	}
	d.answers.Add(1)
	return receipt, nil
}

// askAgain is the way of omi and of package client: the same bytes again, until there is an answer.
func (d *developer) askAgain(ctx context.Context, target events.Target, m registryclient.Message) (events.Receipt, error) {
	for try := 0; ; try++ {
		if try > 0 {
			d.again++
			d.resent[events.RequestHash([]byte(m.Payload))] = true
		}
		if try > 0 && d.dice.IntN(3) == 0 {
			_ = d.publish(ctx, m, "") // without its id, which JetStream would know
		}
		trying, cancel := context.WithTimeout(ctx, mostTry)
		receipt, err := registryclient.Sender{JetStream: d.js, Trust: d.trust, Again: try > 0}.Send(trying, target, m, nil)
		cancel()
		if err == nil || ctx.Err() != nil {
			return receipt, err
		}
		if !errors.Is(err, registryclient.ErrNotStored) && !errors.Is(err, registryclient.ErrNoAnswer) {
			return receipt, err
		}
		pause(ctx, lookEach)
	}
}

// askOnce publishes until the broker says that it has the message, and from then on only looks for
// the answer.
func (d *developer) askOnce(
	ctx context.Context, target events.Target, m registryclient.Message, id string,
) (events.Receipt, error) {
	for d.publish(ctx, m, id) != nil {
		if ctx.Err() != nil {
			return events.Receipt{}, fmt.Errorf("not taken by the broker: %w", ctx.Err())
		}
		d.again++
		d.resent[events.RequestHash([]byte(m.Payload))] = true // it may have it all the same
		pause(ctx, lookEach)
	}
	for next := uint64(1); ctx.Err() == nil; pause(ctx, lookEach) {
		for {
			receipt, place, err := d.receiptFrom(ctx, target, next)
			if err != nil {
				break // none yet, or the broker is away
			}
			if next = place + 1; answers(&receipt, &m) {
				return receipt, nil
			}
		}
	}
	return events.Receipt{}, fmt.Errorf("the broker has it: %w", ctx.Err())
}

// receiptFrom returns the first receipt of a service that has this place in the stream, or a later
// one.
func (d *developer) receiptFrom(ctx context.Context, target events.Target, place uint64) (events.Receipt, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, mostTry)
	defer cancel()
	stream, err := d.js.Stream(ctx, streams.Receipts)
	if err != nil {
		return events.Receipt{}, 0, err
	}
	msg, err := stream.GetMsg(ctx, place, jetstream.WithGetMsgSubject(events.ReceiptSubject+target.String()))
	if err != nil {
		return events.Receipt{}, 0, err
	}
	receipt, err := d.trust.Receipt(msg.Subject, msg.Data)
	return receipt, msg.Sequence, err
}

// answers says whose answer it is (docs/protocol.md §7.3).
func answers(r *events.Receipt, m *registryclient.Message) bool {
	if r.RequestNonce != m.Nonce {
		return false
	}
	if r.Event == events.RequestCommitted {
		return r.PublicKey == m.NewKey
	}
	return r.RequestHash == events.RequestHash([]byte(m.Payload))
}

func (d *developer) publish(ctx context.Context, m registryclient.Message, id string) error {
	ctx, cancel := context.WithTimeout(ctx, mostTry)
	defer cancel()
	msg := &nats.Msg{Subject: m.Subject, Data: []byte(m.Payload), Header: nats.Header{}}
	if id != "" {
		msg.Header.Set(jetstream.MsgIDHeader, id)
	}
	_, err := d.js.PublishMsg(ctx, msg)
	return err
}

// pause waits, but not beyond ctx.
func pause(ctx context.Context, long time.Duration) {
	timer := time.NewTimer(long)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
