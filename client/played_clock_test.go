package client_test

import (
	"errors"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

const hour = int64(3600)

// TestClientWithItsClockAhead: its clock says that the old key has ended long ago; by the registry's, it was committed now.
// So it goes on with the old key.
func TestClientWithItsClockAhead(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	_ = rotating(t.Context(), c)
	r := p.request(t)
	c.Close()
	now := time.Now().Unix() - hour
	p.commit(t, r, 2, now, 300)
	p.record(2, r.key, now, now, false, events.GraceKey{PublicKey: p.first, Expires: now + 300})
	for range 2 { // the answer is unknown at the first start, and in the journal at the second
		c = p.open(t, client.Config{})
		p.await(t, client.Committed, 1)
		p.asks(t, 3)
		signsWith(t, c, p.first)
		c.Close()
	}
	c = p.open(t, client.Config{})
	p.record(2, r.key, now, now, true, events.GraceKey{PublicKey: p.first, Expires: now + 300})
	if err := c.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	signsWith(t, c, r.key)
}

// TestClientHearsLate: the receipt of a change comes when the old key's time is nearly over. Half of the grace period from
// now is too long then.
func TestClientHearsLate(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	began, done := time.Now(), rotating(t.Context(), c)
	r := p.request(t)
	const grace = 12
	p.await(t, client.Stored, 1)
	<-time.After(time.Until(began.Add(grace * time.Second / 3)))
	now := time.Now().Unix()
	p.record(2, r.key, now-grace, now, false)
	p.commit(t, r, 2, now-grace, grace)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	p.await(t, client.Promoted, 1)
	signsWith(t, c, r.key)
	if waited := p.of(client.Promoted)[0].At.Sub(p.of(client.Committed)[0].At); waited > (grace-2)*time.Second/2 {
		t.Errorf("the old key, which had ended, signed for %v", waited)
	}
}

// TestClientShortGrace: of a grace period of one second, nothing may be left: the registry counts whole seconds.
func TestClientShortGrace(t *testing.T) {
	t.Parallel()
	p := play(t)
	asked := make(chan int, 2)
	c := p.open(t, client.Config{Notify: func(e client.Event) {
		if e.Kind == client.Committed || e.Kind == client.Promoted {
			asked <- p.count()
		}
	}})
	testenv.Eventually(t, playedWithin, "the registry is asked at the start", func() error {
		if p.count() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	done := rotating(t.Context(), c)
	r, now := p.request(t), time.Now().Unix()
	p.record(2, r.key, now, now, false)
	p.commit(t, r, 2, now, 1)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	p.await(t, client.Promoted, 1)
	if before, after := <-asked, <-asked; before != after {
		t.Errorf("the registry was asked %d times while the old key, which may have ended, signed", after-before)
	}
}

// TestAutoRotateByTheRegistrysClock: a key's age is what the registry says, whatever the time is here.
func TestAutoRotateByTheRegistrysClock(t *testing.T) {
	t.Parallel()
	p := play(t)
	now := time.Now().Unix() + hour
	p.record(1, p.first, now-hour/2-60, now, true)
	c := p.open(t, client.Config{})
	done := make(chan error, 1)
	go func() { done <- c.AutoRotate(t.Context(), client.Schedule{Every: 30 * time.Minute, Jitter: 0.001}) }()
	r := p.request(t)
	p.record(2, r.key, now, now, true)
	p.commit(t, r, 2, now, 300)
	p.await(t, client.Promoted, 1)

	c.Close() // while it waits for the next time
	if err := returns(t, "AutoRotate", done); !errors.Is(err, client.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}
