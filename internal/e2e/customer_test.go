package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
)

const (
	// changesEach is less than the 64 messages of a service that the streams keep: the test counts
	// them at the end.
	changesEach = 40
	resendAfter = 300 * time.Millisecond
)

// customer binds one service after the other, and changes the keys of each without a pause.
type customer struct {
	name     string
	patient  bool // sends nothing twice: the registry must answer each request
	dice     *rand.Rand
	master   events.SigningKey
	app      events.AppID
	js       jetstream.JetStream
	receipts *receipts

	services     []*service
	acknowledged map[events.Nonce]struct{} // requests that JetStream has taken
	resent       int
}

// service is what the receipts say of one service: its keys, and when each was valid.
type service struct {
	target events.Target
	events []events.Nonce // by sequence
	lives  []life         // of each key, in the order in which they came

	revoked bool
}

func (s *service) current() events.SigningKey { return s.lives[len(s.lives)-1].key }

// life is that of one key: [from, until).
type life struct {
	key   events.SigningKey
	from  int64
	until int64 // endless for the current key
}

const endless = int64(1) << 62

// run works until ctx ends; a request under way is brought to its end.
func (c *customer) run(ctx context.Context) error {
	for ctx.Err() == nil {
		id, err := events.ParseServiceID(fmt.Sprintf("%s-%d", c.name, len(c.services)+1))
		if err != nil {
			return err
		}
		s := &service{target: events.Target{App: c.app, Service: id}}
		c.services = append(c.services, s)
		if err := c.change(s, events.Binding, c.master); err != nil {
			return err
		}
		for len(s.events) < changesEach && ctx.Err() == nil {
			kind, by := events.Rotation, s.current()
			if c.dice.IntN(8) == 0 {
				kind, by = events.Reset, c.master
			}
			if err := c.change(s, kind, by); err != nil {
				return err
			}
		}
	}
	return nil
}

// change sends a request that stands, and waits for its receipt.
func (c *customer) change(s *service, kind events.RequestKind, by events.SigningKey) error {
	draft := events.Draft{
		Kind: kind, Target: s.target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce(), NewKey: events.GenerateSigningKey(),
	}
	if kind == events.Rotation && c.dice.IntN(4) == 0 {
		draft.GracePeriod = new(int64) // an emergency
	}
	payload, err := draft.Sign(by)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	receipt := c.receipts.expect(draft.Nonce)
	if err := c.publish(draft.Subject(), payload, draft.MsgID()); err != nil {
		return err
	}
	c.acknowledged[draft.Nonce] = struct{}{}
	again := time.NewTicker(resendAfter)
	defer again.Stop()
	deadline := time.After(patience)
	for {
		select {
		case r := <-receipt:
			return s.changed(&draft, &r)
		case <-deadline:
			return fmt.Errorf("%s: request %s was acknowledged by JetStream, and not answered within %v", s.target, draft.Nonce, patience)
		case <-again.C:
			if c.patient {
				continue
			}
			c.resent++
			// Without its id, by which JetStream would know it: the registry alone must.
			if err := c.publish(draft.Subject(), payload, ""); err != nil {
				return err
			}
		}
	}
}

func (c *customer) publish(subject string, payload []byte, id string) error {
	msg := &nats.Msg{Subject: subject, Data: payload, Header: nats.Header{}}
	if id != "" {
		msg.Header.Set(jetstream.MsgIDHeader, id)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // to finish its request
	defer cancel()
	if _, err := c.js.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("the broker, which nobody kills, took no request: %w", err)
	}
	return nil
}

// changed notes what a receipt says. Each change has the next sequence, without a gap.
func (s *service) changed(draft *events.Draft, r *events.Receipt) error {
	next := int64(len(s.events) + 1)
	var key events.PublicKey
	if draft.Kind != events.Revocation {
		key = draft.NewKey.Public()
	}
	if r.Event != events.RequestCommitted || r.Sequence != next || r.PublicKey != key {
		return fmt.Errorf("%s: change %d was answered by %+v", s.target, next, *r)
	}
	switch draft.Kind {
	case events.Rotation:
		s.lives[len(s.lives)-1].until = r.GracePeriodExpiry
	case events.Reset, events.Revocation: // ends every earlier key
		for i := range s.lives {
			s.lives[i].until = min(s.lives[i].until, r.Timestamp)
		}
	}
	s.events, s.revoked = append(s.events, r.EventNonce), draft.Kind == events.Revocation
	if s.revoked {
		return nil
	}
	s.lives = append(s.lives, life{draft.NewKey, r.Timestamp, endless})
	return nil
}
