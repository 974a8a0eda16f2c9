package client_test

import (
	"context"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
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
