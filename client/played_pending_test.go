package client_test

import (
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// TestPendingKeyThatIsCurrent: of a rotation nothing is left but its new key, pending, and the registry has committed it. That
// was the rotation: no other is asked for.
func TestPendingKeyThatIsCurrent(t *testing.T) {
	t.Parallel()
	p := play(t)
	key, err := p.store.Generate(t.Context(), client.Pending)
	pending := public(t, key, err)
	now := time.Now().Unix()
	p.record(2, pending, now, now, true, events.GraceKey{PublicKey: p.first, Expires: now + 300})
	c := p.open(t, client.Config{})
	kind, receipt, err := c.Resume(t.Context())
	if err != nil || kind != events.Rotation || receipt.Sequence != 2 || receipt.PublicKey != pending || !receipt.RequestNonce.IsZero() {
		t.Errorf("resume: %s, %+v, %v", kind, receipt, err)
	}
	if err := c.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	signsWith(t, c, pending)
	p.sentNothing(t)
}

// TestPendingKeyThatBecomesCurrent: at the start the pending key was not the current one, and it is when a rotation is asked for.
func TestPendingKeyThatBecomesCurrent(t *testing.T) {
	t.Parallel()
	p := play(t)
	key, err := p.store.Generate(t.Context(), client.Pending)
	pending := public(t, key, err)
	c := p.open(t, client.Config{})
	if kind, _, err := c.Resume(t.Context()); err != nil || kind != "" {
		t.Errorf("resume, where nothing was under way: %s, %v", kind, err)
	}
	now := time.Now().Unix()
	p.record(2, pending, now, now, true, events.GraceKey{PublicKey: p.first, Expires: now + 300})
	if receipt, err := c.Rotate(t.Context()); err != nil || receipt.Sequence != 2 || receipt.PublicKey != pending {
		t.Errorf("rotate: %+v, %v", receipt, err)
	}
	if err := c.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	signsWith(t, c, pending)
	p.sentNothing(t)
	// An emergency that leaves the old key in grace would be none.
	done := make(chan error, 1)
	go func() {
		_, err := c.RotateWithGrace(t.Context(), 0)
		done <- err
	}()
	r := p.request(t)
	p.record(3, r.key, now, now, true)
	p.commit(t, r, 3, now, 0)
	if err := returns(t, "Rotate", done); err != nil {
		t.Error(err)
	}
}

// sentNothing: the service has asked for no change.
func (p *played) sentNothing(t *testing.T) {
	t.Helper()
	if err := p.world.js.Conn().Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _, err := p.requests.Pending(); err != nil || n != 0 {
		t.Errorf("%d requests were sent (%v)", n, err)
	}
}
