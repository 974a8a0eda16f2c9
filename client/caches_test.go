package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// announces has the registry say how long its JWK Sets may be kept, in seconds. What it says can be changed.
func (p *played) announces(t *testing.T, seconds int64) *atomic.Int64 {
	t.Helper()
	var kept atomic.Int64
	kept.Store(seconds)
	service, err := api.Register(t.Context(), p.world.js.Conn(), slog.New(slog.DiscardHandler),
		api.Service{Name: "omi-registry"}, api.Endpoint{
			Name: "registry", Subject: events.LookupRegistrySubject,
			Handle: func(context.Context, api.Call) (api.Answer, error) {
				return api.JSON(events.RegistryInfo{
					Origin: subtest.Origin, PublicKeys: []events.PublicKey{p.world.registry.Key.Public()}, GracePeriod: 3000, JWKSMaxAge: kept.Load(),
				})
			},
		})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	return &kept
}

// TestWaitsForCaches: everyone has applied the change, and a cache may still have the JWK Set of before.
func TestWaitsForCaches(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ kept, grace, least int64 }{
		"the time is over":              {kept: 1, grace: 300, least: 1},
		"half of the grace period is":   {kept: 1000, grace: 5, least: 2},
		"nothing is kept, but answered": {kept: 0, grace: 300, least: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := play(t)
			p.announces(t, c.kept)
			k := p.open(t, client.Config{JWKS: true})
			done := rotating(t.Context(), k)
			r, now := p.request(t), time.Now().Unix()
			p.record(2, r.key, now, now, true)
			p.commit(t, r, 2, now, c.grace)
			if err := returns(t, "Rotate", done); err != nil {
				t.Fatal(err)
			}
			p.await(t, client.Promoted, 1)
			signsWith(t, k, r.key)
			if waited := p.of(client.Promoted)[0].At.Sub(p.of(client.Committed)[0].At); waited < time.Duration(c.least)*time.Second {
				t.Errorf("the new key signed after %v", waited)
			}
		})
	}
}

// TestWaitsForCachesAfterRestart: who is started again waits for what was announced when the change was committed, and for the rest
// of it only, by the registry's clock.
func TestWaitsForCachesAfterRestart(t *testing.T) {
	t.Parallel()
	const kept = 1000
	p := play(t)
	announced := p.announces(t, kept)
	c := p.open(t, client.Config{JWKS: true})
	done := rotating(t.Context(), c)
	r, now := p.request(t), time.Now().Unix()
	p.record(2, r.key, now, now, true)
	p.commit(t, r, 2, now, 3000)
	if err := returns(t, "Rotate", done); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, playedWithin, "the journal says how long", func() error {
		journal, err := p.store.Load(t.Context())
		if err == nil && !bytes.Contains(journal, fmt.Appendf(nil, `"jwks_max_age":%d`, kept)) {
			err = fmt.Errorf("it is %s", journal)
		}
		return err
	})
	c.Close()
	announced.Store(0)
	c = p.open(t, client.Config{})
	p.record(2, r.key, now, now+kept, true)
	p.asks(t, 3)
	signsWith(t, c, p.first)
	p.record(2, r.key, now, now+kept+10, true)
	p.await(t, client.Promoted, 1)
	signsWith(t, c, r.key)
}

// TestGraceTooShortForCaches: nothing is sent that would leave a time in which neither key is in every cache. An emergency is one.
func TestGraceTooShortForCaches(t *testing.T) {
	t.Parallel()
	p := play(t)
	p.announces(t, 60)
	c := p.open(t, client.Config{JWKS: true})
	if _, err := c.RotateWithGrace(t.Context(), 124*time.Second); !errors.Is(err, client.ErrShortGrace) {
		t.Errorf("got %v, want ErrShortGrace", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.RotateWithGrace(context.Background(), 0)
		done <- err
	}()
	r, now := p.request(t), time.Now().Unix() // the first that was sent
	p.record(2, r.key, now, now, true)
	p.commit(t, r, 2, now, 0)
	if err := returns(t, "RotateWithGrace", done); err != nil {
		t.Fatal(err)
	}
	p.await(t, client.Promoted, 1)
	signsWith(t, c, r.key)
}
