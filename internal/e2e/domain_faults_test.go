package e2e_test

import (
	"context"
	"crypto"
	"errors"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// errFault is what a faulty store says.
var errFault = errors.New("the disk is on fire")

// faulty is a key store that works until one of its steps, and from then on is as if its process
// were dead: nothing that it is asked to do is done.
type faulty struct {
	*client.Folder
	failAt int  // the step that fails
	done   bool // though it was done

	mu   sync.Mutex
	step int
	dead chan struct{} // closed at the fault
}

// at does a step, unless a fault comes before.
func (f *faulty) at(do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.step++
	switch {
	case f.step < f.failAt:
		return do()
	case f.step > f.failAt:
		return errFault
	case f.done:
		if err := do(); err != nil {
			return err
		}
	}
	close(f.dead)
	return errFault
}

func (f *faulty) Generate(ctx context.Context, slot client.Slot) (key crypto.Signer, err error) {
	err = f.at(func() error {
		key, err = f.Folder.Generate(ctx, slot)
		return err
	})
	return key, err
}

func (f *faulty) Promote(ctx context.Context) error {
	return f.at(func() error { return f.Folder.Promote(ctx) })
}

func (f *faulty) Save(ctx context.Context, text []byte) error {
	return f.at(func() error { return f.Folder.Save(ctx, text) })
}

// killedBetweenSteps lets a rotation die at each step that writes to the disk, before it and after
// it, and starts again. The service signs with an accepted key throughout, and the next rotation
// stands.
func killedBetweenSteps(s *domain) {
	s.bind()
	sequence := int64(1)
	for step := 1; ; step++ {
		met := false
		for _, done := range []bool{false, true} {
			f := &faulty{Folder: s.store(), failAt: step, done: done, dead: make(chan struct{})}
			c := s.open(f)
			ctx, cancel := context.WithTimeout(s.t.Context(), patience)
			_, err := c.Rotate(ctx)
			if err == nil {
				err = settleOrDie(ctx, c, f)
			}
			cancel()
			select {
			case <-f.dead:
				met = true
			default:
				if err != nil {
					s.t.Fatal(err)
				}
			}
			s.accepted(c)
			c.Close()
			s.close(f.Folder)

			store := s.store()
			c = s.open(store)
			s.accepted(c)
			have := s.record().Sequence
			if have > sequence+1 {
				s.t.Fatalf("step %d, done %t: one rotation made sequence %d of %d", step, done, have, sequence)
			}
			if receipt, err := c.Rotate(s.t.Context()); err != nil {
				s.t.Fatalf("step %d, done %t: rotate after the restart: %+v, %v", step, done, receipt, err)
			}
			sequence = s.record().Sequence
			s.settled(c, sequence)
			c.Close()
			s.close(store)
		}
		if !met {
			if step < 6 { // key, request, receipt, promotion, end
				s.t.Errorf("only %d steps were seen", step-1)
			}
			return
		}
	}
}

func settleOrDie(ctx context.Context, c *client.Client, f *faulty) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-f.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	return c.Settle(ctx)
}

// TestClientDoesNotSwitchEarly: the new key signs once every durable has applied the event, or half
// of the grace period is over, and not before.
func TestClientDoesNotSwitchEarly(t *testing.T) {
	t.Parallel()
	useSources(t)
	d := newDeployment(t, testenv.Database(t, testenv.SQLite))
	s := newDomain(t, d, "patient")
	s.bind()
	store := s.store()
	defer s.close(store)
	c := s.open(store)
	s.settled(c, 1)

	for _, durable := range []string{authDurable, streams.BillingDurable} {
		_, old := c.Signer().Key()
		s.pause(durable)
		receipt, err := c.Rotate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, patience, "the other subscriber has applied it", func() error {
			for _, e := range s.told.of(client.Applied) {
				if e.Sequence == receipt.Sequence && e.Durable != durable {
					return nil
				}
			}
			return errors.New("not yet")
		})
		if _, now := c.Signer().Key(); now != old {
			t.Errorf("%s has not heard of the new key, and it signs already", durable)
		}
		if record := s.record(); record.Propagation[durable] {
			t.Errorf("%s is not held back: %v", durable, record.Propagation)
		}
		s.accepted(c)
		s.resume(durable)
		s.settled(c, receipt.Sequence)
		if _, now := c.Signer().Key(); now == old {
			t.Error("everyone has heard of the new key, and the old one signs")
		}
	}

	s.pause(streams.BillingDurable)
	const grace = 4 * time.Second
	receipt, err := c.RotateWithGrace(t.Context(), grace)
	if err != nil {
		t.Fatal(err)
	}
	s.settled(c, receipt.Sequence)
	promoted := last(s.told.of(client.Promoted))
	// By the registry's clock, which is this machine's, and in whole seconds. When the client heard
	// of the commit is another matter.
	if waited := promoted.At.Sub(time.Unix(receipt.Timestamp, 0)); waited < (grace-time.Second)/2 {
		t.Errorf("the new key signed %v after the commit, though half of the grace period is %v", waited, grace/2)
	}
	s.resume(streams.BillingDurable)
}

func last(list []client.Event) client.Event { return list[len(list)-1] }

// TestClientStartsAlone: a service signs while the broker is away, and a rotation waits for it.
func TestClientStartsAlone(t *testing.T) {
	t.Parallel()
	useSources(t)
	d := newDeployment(t, testenv.Database(t, testenv.SQLite))
	s := newDomain(t, d, "alone")
	s.bind()
	store := s.store()
	defer s.close(store)
	if err := d.registry.interrupt(); err != nil {
		t.Fatal(err)
	}
	c := s.open(store)
	s.accepted(c)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.Rotate(ctx)
		done <- err
	}()
	testenv.Eventually(t, patience, "the request is stored", func() error {
		if len(s.told.of(client.Stored)) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	cancel()
	if err := <-done; !errors.Is(err, client.ErrNoAnswer) {
		t.Fatalf("rotate without a registry: %v", err)
	}
	_, public := c.Signer().Key()
	c.Close()
	if _, err := c.Rotate(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("rotate a closed client: %v", err)
	}
	if err := d.registry.start(); err != nil {
		t.Fatal(err)
	}
	d.awaitReady()
	c = s.open(store)
	s.settled(c, 2)
	if _, now := c.Signer().Key(); now == public {
		t.Error("the request that was under way made no new key")
	}
	if resumed := s.told.of(client.Resumed); len(resumed) != 1 {
		t.Errorf("resumed: %v", resumed)
	}
}
