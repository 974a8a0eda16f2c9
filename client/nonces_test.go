package client_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

func TestSkew(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		after int64 // s from the signature to its arrival
		want  events.Reason
	}{
		{0, ""},
		{60, ""},
		{61, events.TimestampOutOfWindow},
		{-60, ""},
		{-61, events.TimestampOutOfWindow},
	} {
		w := newSigWorld(t)
		m := w.post(t)
		w.clock.Add(c.after)
		if c.want != "" {
			w.keys.away = errSigAway // nobody is asked
		}
		if _, reason := m.to(t, w.guarded()); reason != c.want {
			t.Errorf("%d s later: %q, want %q", c.after, reason, c.want)
		}
	}
	w := newSigWorld(t)
	m := w.byHand(unsignedPost(), sigComponents, sigParams+";expires=1705412610")
	w.clock.Add(9)
	if status, reason := m.to(t, w.guarded()); status != http.StatusOK {
		t.Errorf("before it expires: %d %s", status, reason)
	}
	w.clock.Add(1)
	if _, reason := m.to(t, w.guarded()); reason != events.TimestampOutOfWindow {
		t.Errorf("expired: %q", reason)
	}
}

// TestReplay sends a request again, at once and for as long as it could pass, as it was or changed. Only what was refused
// leaves the nonce unused.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	guarded := w.guarded()
	m := w.post(t)
	changed := m.clone()
	changed.body = "{}"
	if _, reason := changed.to(t, guarded); reason != client.DigestMismatch {
		t.Errorf("changed on the way: %q", reason)
	}
	if status, reason := m.to(t, guarded); status != http.StatusOK {
		t.Errorf("the request itself, after a copy of it with another body: %d %s", status, reason)
	}
	for range 62 {
		want := events.NonceReused
		if w.clock.Load() > sigTime+60 {
			want = events.TimestampOutOfWindow
		}
		if _, reason := m.to(t, guarded); reason != want {
			t.Errorf("again, %d s later: %q, want %q", w.clock.Load()-sigTime, reason, want)
		}
		w.clock.Add(1)
		if status, reason := w.post(t).to(t, guarded); status != http.StatusOK {
			t.Errorf("another request: %d %s", status, reason)
		}
	}
}

// slowBody lets time pass before its last byte.
type slowBody struct {
	io.Reader
	before func()
}

func (b slowBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil {
		b.before()
	}
	return n, err
}

// TestSlowReplay begins a replay in time, and ends it after its nonce is forgotten.
func TestSlowReplay(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	guarded := w.guarded()
	m := w.post(t)
	if status, reason := m.to(t, guarded); status != http.StatusOK {
		t.Fatalf("the request itself: %d %s", status, reason)
	}
	w.clock.Store(sigTime + 60)
	r := httptest.NewRequestWithContext(t.Context(), m.method, m.uri, slowBody{strings.NewReader(m.body), func() {
		w.clock.Store(sigTime + 61)
		if status, reason := w.post(t).to(t, guarded); status != http.StatusOK {
			t.Errorf("another request: %d %s", status, reason)
		}
	}})
	r.Host, r.Header = m.host, m.header
	answer := httptest.NewRecorder()
	guarded.ServeHTTP(answer, r)
	if answer.Code != http.StatusUnauthorized || !strings.Contains(answer.Body.String(), string(events.TimestampOutOfWindow)) {
		t.Errorf("a replay that came in slowly: %d %s", answer.Code, answer.Body)
	}
}

// TestFlood has one caller send more than is remembered of it: nothing of it passes twice, and nobody else notices.
func TestFlood(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	w.cfg.MaxNonces = 8
	other := newSigIdentity(t, "org.example.shop.north", w.key)
	w.keys.good[other.target] = []events.PublicKey{w.key.Public()}
	guarded := w.guarded()

	c := new(capture)
	if err := roundTrip(&client.Transport{Signer: other, Base: c, Now: w.now}, newPost(t)); err != nil {
		t.Fatal(err)
	}
	theirs := c.sent[0]
	if status, reason := theirs.to(t, guarded); status != http.StatusOK {
		t.Fatalf("the other caller: %d %s", status, reason)
	}
	var passed []wire
	for range 5 {
		for range 6 {
			m := w.post(t)
			if status, reason := m.to(t, guarded); status != http.StatusOK {
				t.Errorf("a request of the flood: %d %s", status, reason)
			}
			passed = append(passed, m)
		}
		w.clock.Add(1)
	}
	for _, m := range append(passed, theirs) {
		if _, reason := m.to(t, guarded); reason != events.NonceReused && reason != events.TimestampOutOfWindow {
			t.Errorf("again: %q", reason)
		}
	}
	if _, reason := theirs.to(t, guarded); reason != events.NonceReused {
		t.Errorf("the other caller's nonce: %q", reason)
	}
	for range 20 { // in one second
		w.post(t).to(t, guarded)
	}
	if _, reason := w.post(t).to(t, guarded); reason != events.TimestampOutOfWindow {
		t.Errorf("more in a second than is remembered: %q", reason)
	}
	w.clock.Add(1)
	if status, reason := w.post(t).to(t, guarded); status != http.StatusOK {
		t.Errorf("in the next second: %d %s", status, reason)
	}
}

// TestForgets looks at what is left in memory of callers who have gone.
func TestForgets(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	guard := client.NewGuard(client.GuardConfig{Checker: new(believer), Now: w.now, MaxNonces: 4})
	guarded := guard.RequireSignature(sigHost)(http.HandlerFunc(echo))
	for _, name := range []string{"north", "south", "east", "west"} {
		w.id = newSigIdentity(t, "org.example.shop."+name, w.key)
		for range 6 {
			w.post(t).to(t, guarded)
			w.clock.Add(1)
		}
	}
	if callers, nonces := guard.Remembered(); callers != 4 || nonces != 16 {
		t.Errorf("%d nonces of %d callers are remembered", nonces, callers)
	}
	w.clock.Add(200)
	w.post(t).to(t, guarded)
	if callers, nonces := guard.Remembered(); callers != 1 || nonces != 1 {
		t.Errorf("later, %d nonces of %d callers are remembered", nonces, callers)
	}
}

// TestOnce draws requests of a few callers over time, and sends them again at random: none passes twice, however little is
// remembered.
func TestOnce(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	ids := []*sigIdentity{w.id}
	for _, name := range []string{"north", "south"} {
		ids = append(ids, newSigIdentity(t, "org.example.shop."+name, w.key))
	}
	rapid.Check(t, func(rt *rapid.T) {
		w.clock.Store(sigTime)
		c := new(capture)
		guarded := client.NewGuard(client.GuardConfig{
			Checker: new(believer), Now: w.now, MaxNonces: rapid.IntRange(1, 5).Draw(rt, "remembered"),
		}).RequireSignature(sigHost)(http.HandlerFunc(echo))
		passed := make(map[int]bool)
		rt.Repeat(map[string]func(*rapid.T){
			"time passes": func(rt *rapid.T) { w.clock.Add(rapid.Int64Range(1, 40).Draw(rt, "seconds")) },
			"sign": func(rt *rapid.T) {
				ahead := rapid.Int64Range(-60, 60).Draw(rt, "clock")
				w.clock.Add(ahead)
				defer w.clock.Add(-ahead)
				transport := &client.Transport{Signer: rapid.SampledFrom(ids).Draw(rt, "caller"), Base: c, Now: w.now}
				if err := roundTrip(transport, newPost(t)); err != nil {
					rt.Fatal(err)
				}
			},
			"send": func(rt *rapid.T) {
				if len(c.sent) == 0 {
					return
				}
				n := rapid.IntRange(0, len(c.sent)-1).Draw(rt, "which")
				if status, _ := c.sent[n].to(t, guarded); status == http.StatusOK {
					if passed[n] {
						rt.Errorf("request %d passed twice", n)
					}
					passed[n] = true
				}
			},
		})
	})
}
