package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/streams"
)

// TestSignWaitsNoLonger: whatever keeps the client from knowing the key that is accepted, Sign does not wait for it longer
// than it may.
func TestSignWaitsNoLonger(t *testing.T) {
	t.Parallel()
	p := play(t)
	store := &stubborn{Folder: p.store}
	c := p.open(t, client.Config{Store: store, HoldAtMost: 100 * time.Millisecond})
	done := make(chan error, 1)
	go func() {
		_, err := c.RotateWithGrace(context.Background(), 0)
		done <- err
	}()
	r := p.request(t)
	store.failing.Store(true)
	now := time.Now().Unix()
	p.record(2, r.key, now, now, true)
	p.commit(t, r, 2, now, 0)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	signed := make(chan error, 1)
	go func() {
		_, err := c.Signer().Sign(nil, []byte("a message"), nil)
		signed <- err
	}()
	if err := returns(t, "Sign", signed); err != nil {
		t.Error(err)
	}
	store.failing.Store(false)
	if err := c.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	signsWith(t, c, r.key)
}

// TestSignInsideNotify: an event that is told while Sign waits.
func TestSignInsideNotify(t *testing.T) {
	t.Parallel()
	p := play(t)
	signed := make(chan error, 1)
	var c *client.Client
	c = p.open(t, client.Config{HoldAtMost: 100 * time.Millisecond, Notify: func(e client.Event) {
		if e.Kind == client.Committed {
			_, err := c.Signer().Sign(nil, []byte("a message"), nil)
			signed <- err
		}
	}})
	go func() { _, _ = c.RotateWithGrace(context.Background(), 0) }()
	p.commit(t, p.request(t), 2, time.Now().Unix(), 0)
	if err := returns(t, "Sign", signed); err != nil {
		t.Error(err)
	}
}

// TestNobodyWaitsForAnEmergency: an emergency that nobody waits for any more, and that has not begun, does not make the
// rotation before it switch early.
func TestNobodyWaitsForAnEmergency(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	done := rotating(t.Context(), c)
	r := p.request(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.RotateWithGrace(ctx, 0); !errors.Is(err, client.ErrNotBegun) {
		t.Fatalf("a change whose turn has not come: %v", err)
	}
	if err := c.Promote(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("promote what is not committed: %v", err)
	}
	now := time.Now().Unix()
	p.record(2, r.key, now, now, false)
	p.commit(t, r, 2, now, 300)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	p.asks(t, 3)
	signsWith(t, c, p.first)
}

// TestGiveUpSaysHowFar: what a caller hears whose ctx ends, while the store takes its time.
func TestGiveUpSaysHowFar(t *testing.T) {
	t.Parallel()
	p := play(t)
	store := &stubborn{Folder: p.store, held: make(chan struct{}, 10), goOn: make(chan struct{})}
	c := p.open(t, client.Config{Store: store})
	defer close(store.goOn)
	first, cancelFirst := context.WithCancel(t.Context())
	defer cancelFirst()
	done := rotating(first, c)
	returns(t, "the new key", store.held)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Rotate(ctx); !errors.Is(err, client.ErrNotBegun) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the new key is made: %v", err)
	}
	store.goOn <- struct{}{}
	returns(t, "the request", store.held)
	store.goOn <- struct{}{}
	r := p.request(t)
	p.await(t, client.Stored, 1)
	p.commit(t, r, 2, time.Now().Unix(), 300)
	returns(t, "the receipt", store.held)
	cancelFirst()
	if err := returns(t, "Rotate", done); !errors.Is(err, client.ErrNoAnswer) {
		t.Errorf("while the receipt is written: %v", err)
	}
}

// TestNotifyBlocks: it must not, and if it does, a caller whose ctx ends is not kept.
func TestNotifyBlocks(t *testing.T) {
	t.Parallel()
	p := play(t)
	blocked, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	c := p.open(t, client.Config{Notify: func(e client.Event) {
		if e.Kind == client.Stored {
			close(blocked)
			<-release
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := rotating(ctx, c)
	returns(t, "Send", blocked)
	cancel()
	if err := returns(t, "Rotate", done); !errors.Is(err, client.ErrNoAnswer) {
		t.Errorf("got %v, want ErrNoAnswer", err)
	}
}

// TestAskedWhileSettling: those who ask for a rotation while the one before has not settled share the next.
func TestAskedWhileSettling(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	done := rotating(t.Context(), c)
	r, now := p.request(t), time.Now().Unix()
	p.record(2, r.key, now, now, false)
	p.commit(t, r, 2, now, 300)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	var asking [3]<-chan error
	for i := range asking {
		asking[i] = rotating(t.Context(), c)
	}
	for range 10 { // by then they are heard
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := c.Settle(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it has settled: %v", err)
		}
		cancel()
	}
	p.record(2, r.key, now, now, true)
	r = p.request(t)
	p.record(3, r.key, now, now, true)
	p.commit(t, r, 3, now, 300)
	for _, done := range asking {
		if err := returns(t, "Rotate", done); err != nil {
			t.Error(err)
		}
	}
}

// TestSettlingIsNotPutOff: those who ask again and again whether it has settled don't keep it from that.
func TestSettlingIsNotPutOff(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	done := rotating(t.Context(), c)
	r, now := p.request(t), time.Now().Unix()
	p.record(2, r.key, now, now, false)
	p.commit(t, r, 2, now, 300)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	p.asks(t, 1)
	p.record(2, r.key, now, now, true)
	settled := make(chan error, 1)
	ended, end := context.WithTimeout(t.Context(), playedWithin)
	defer end()
	go func() {
		for {
			ctx, cancel := context.WithTimeout(ended, 5*time.Millisecond)
			err := c.Settle(ctx)
			cancel()
			if err == nil || ended.Err() != nil {
				settled <- err
				return
			}
		}
	}()
	if err := <-settled; err != nil {
		t.Error(err)
	}
}

// TestOtherDurables: a durable that does not count, and that nobody reads, delays no switch to the new key.
func TestOtherDurables(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	done := rotating(t.Context(), c)
	r, now := p.request(t), time.Now().Unix()
	p.commit(t, r, 2, now, 300)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	p.set(events.ServiceRecord{
		Origin: subtest.Origin, AppID: p.target.App, ServiceID: p.target.Service, Status: events.Active, Sequence: 2, BoundAt: 1,
		Current: events.CurrentKey{PublicKey: r.key, Since: now}, Grace: []events.GraceKey{{PublicKey: p.first, Expires: now + 300}},
		Propagation: map[string]bool{streams.AuthDurable: true}, OtherDurables: map[string]bool{"audit": false}, Timestamp: now,
	})
	p.await(t, client.Promoted, 1)
	signsWith(t, c, r.key)
}
