package client_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// TestClockBehind: a service whose clock is ten minutes behind, or ahead, rotates all the same, with a request that is dated
// by the registry's signed time, and is told what is wrong.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	for says, off := range map[string]int64{"behind": 600, "ahead": -600} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			p := play(t)
			registry := func() int64 { return time.Now().Unix() + off }
			p.record(1, p.first, registry(), registry(), true)
			c := p.open(t, client.Config{})
			done := rotating(t.Context(), c)
			first := p.request(t)
			p.refuse(t, first, events.TimestampOutOfWindow, registry())
			second := p.request(t)
			if second.key != first.key || second.nonce == first.nonce || second.at < first.at+off || second.at > registry() {
				t.Errorf("asked for %s at %d, then for %s at %d, and the registry's time is %d", first.key, first.at, second.key, second.at, registry())
			}
			p.record(2, second.key, registry(), registry(), true)
			p.commit(t, second, 2, registry(), 300)
			if err := returns(t, "Rotate", done); err != nil {
				t.Fatal(err)
			}
			told := p.of(client.Redated)
			if len(told) != 1 || !errors.Is(told[0].Err, client.ErrClock) || !strings.Contains(told[0].Err.Error(), says) ||
				!strings.Contains(told[0].Err.Error(), "10m") && !strings.Contains(told[0].Err.Error(), "9m5") {
				t.Errorf("told %v", told)
			}
			if refused := p.of(client.Refused); len(refused) > 0 {
				t.Errorf("told %v", refused)
			}
		})
	}
}

// TestClockIsFollowedOnce: a date that is refused again is the registry's answer. A restart in between changes nothing.
func TestClockIsFollowedOnce(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		p := play(t)
		c := p.open(t, client.Config{})
		done := rotating(t.Context(), c)
		p.refuse(t, p.request(t), events.TimestampOutOfWindow, time.Now().Unix()+600)
		second := p.request(t)
		if restart {
			c.Close()
			if err := returns(t, "Rotate", done); !errors.Is(err, client.ErrClosed) {
				t.Fatal(err)
			}
			c = p.open(t, client.Config{})
			resumed := make(chan error, 1)
			done = resumed
			go func() {
				_, _, err := c.Resume(t.Context())
				resumed <- err
			}()
		}
		p.refuse(t, second, events.TimestampOutOfWindow, time.Now().Unix()+1200)
		refused := &client.RefusedError{}
		if err := returns(t, "Rotate", done); !errors.As(err, &refused) || refused.Receipt.Reason != events.TimestampOutOfWindow {
			t.Fatalf("got %v", err)
		}
		if told := p.of(client.Redated); len(told) != 1 {
			t.Errorf("told %v", told)
		}
	}
}
