package client_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestFollows: of two clients on one store, one leads and the other follows, until it takes over with what is under way.
func TestFollows(t *testing.T) {
	t.Parallel()
	p := play(t)
	leader := p.open(t, client.Config{})
	follower := p.open(t, client.Config{Store: open(t, p.folder)})
	p.await(t, client.Follows, 1)
	if _, err := follower.Rotate(t.Context()); !errors.Is(err, client.ErrLocked) {
		t.Errorf("a follower rotates: %v", err)
	}
	if err := follower.Settle(t.Context()); err != nil {
		t.Errorf("a follower settles: %v", err)
	}
	done := rotating(t.Context(), leader)
	r, now := p.request(t), time.Now().Unix()
	p.record(2, r.key, now, now, true)
	p.commit(t, r, 2, now, 300)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	p.signs(t, follower, r.key)
	if err := errors.Join(follower.Settle(t.Context()), follower.Health()); err != nil {
		t.Errorf("a follower that has switched: %v", err)
	}

	// The leader ends before its next request is answered: the follower sends the same bytes again.
	done = rotating(t.Context(), leader)
	r = p.request(t)
	leader.Close()
	if err := returns(t, "Rotate", done); !errors.Is(err, client.ErrClosed) {
		t.Fatal(err)
	}
	p.await(t, client.Leads, 1)
	if again := p.request(t); again.nonce != r.nonce {
		t.Errorf("sent %v, then %v", r, again)
	}
	p.record(3, r.key, now, now, true)
	p.commit(t, r, 3, now, 300)
	p.signs(t, follower, r.key)
	done = rotating(t.Context(), follower)
	r = p.request(t)
	p.record(4, r.key, now, now, true)
	p.commit(t, r, 4, now, 300)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	if told := p.of(client.Foreign); len(told) > 0 {
		t.Errorf("told %v", told)
	}
}

// TestForeignKey: a copy of the store rotates elsewhere. The client hears of it, says so once, goes on signing with what it
// has, and is well again when its store has the key.
func TestForeignKey(t *testing.T) {
	t.Parallel()
	p := play(t)
	c := p.open(t, client.Config{})
	if err := errors.Join(c.Settle(t.Context()), c.Health()); err != nil {
		t.Fatal(err)
	}
	elsewhere, now := events.GenerateSigningKey(), time.Now().Unix()
	p.record(2, elsewhere.Public(), now, now, true, events.GraceKey{PublicKey: p.first, Expires: now + 300})
	if err := p.world.js.Conn().Publish(events.ChangeSubject+p.target.String(), nil); err != nil {
		t.Fatal(err)
	}
	p.await(t, client.Foreign, 1)
	if err := c.Health(); !errors.Is(err, client.ErrForeignKey) {
		t.Errorf("Health returns %v", err)
	}
	for range 2 {
		if err := c.Settle(t.Context()); !errors.Is(err, client.ErrForeignKey) {
			t.Errorf("Settle returns %v", err)
		}
	}
	signsWith(t, c, p.first)
	if told := p.of(client.Foreign); len(told) != 1 || told[0].Key != elsewhere.Public() || !errors.Is(told[0].Err, client.ErrForeignKey) {
		t.Errorf("told %v", told)
	}
	if err := p.put(elsewhere); err != nil {
		t.Fatal(err)
	}
	p.signs(t, c, elsewhere.Public())
	if err := errors.Join(c.Settle(t.Context()), c.Health()); err != nil {
		t.Errorf("with the key in its store: %v", err)
	}
}

// TestOldKeyComesBack: from a snapshot, say. Before the start, Settle and Health say so; while the client runs, it goes on
// with the newer key.
func TestOldKeyComesBack(t *testing.T) {
	t.Parallel()
	p := play(t)
	elsewhere, now := events.GenerateSigningKey(), time.Now().Unix()
	p.record(3, elsewhere.Public(), now, now, true)
	c := p.open(t, client.Config{})
	if err := c.Settle(t.Context()); !errors.Is(err, client.ErrForeignKey) || !errors.Is(c.Health(), client.ErrForeignKey) {
		t.Errorf("Settle returns %v, Health %v", err, c.Health())
	}
	c.Close()

	p.record(1, p.first, now, now, true)
	c = p.open(t, client.Config{})
	if err := c.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.put(elsewhere); err != nil {
		t.Fatal(err)
	}
	p.await(t, client.Retrying, 1)
	signsWith(t, c, p.first)
}

// TestAutoRotateOfACopy: a key that was superseded is not tried again and again.
func TestAutoRotateOfACopy(t *testing.T) {
	t.Parallel()
	p := play(t)
	old := time.Now().Unix() - hour
	p.record(1, p.first, old, time.Now().Unix(), true)
	c := p.open(t, client.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.AutoRotate(ctx, client.Schedule{Every: time.Minute}) }()
	r := p.request(t)
	elsewhere := events.GenerateSigningKey()
	p.record(2, elsewhere.Public(), old, time.Now().Unix(), true) // and due again
	p.refuse(t, r, events.SupersededKey, time.Now().Unix())
	p.await(t, client.Foreign, 1)
	// A client that hammers would have asked again by now: after a second, and after two more.
	if n, _, _ := p.requests.Pending(); n > 0 {
		t.Errorf("%d requests more by a key that was superseded", n)
	}
	cancel()
	if err := returns(t, "AutoRotate", done); err != nil {
		t.Error(err)
	}
}

// put puts a key into the service's store, as another process or a program that synchronises it does.
func (p *played) put(key events.SigningKey) error {
	file := filepath.Join(p.folder, "key.pem")
	return keyfile.Replace(file, file, key)
}

// signs waits until a client signs with a key.
func (p *played) signs(t *testing.T, c *client.Client, want events.PublicKey) {
	t.Helper()
	testenv.Eventually(t, playedWithin, "it signs with the new key", func() error {
		if _, have := c.Signer().Key(); have != want {
			return errors.New("not yet")
		}
		return nil
	})
}
