package decision

import (
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
)

// TestUnknownApp: the app is looked for before the service, in every request by the Master Key.
func TestUnknownApp(t *testing.T) {
	t.Parallel()
	k := newBook(t, Rules{})
	d := k.developer("org.omiappreg.alice", "cms")
	d.target.App, _ = events.ParseAppID("org.omiappreg.later")
	for _, c := range []struct {
		request request
		want    events.Reason
	}{
		{d.bind(), events.UnknownApp},
		{d.rotate(), events.UnknownService},
		{d.reset(), events.UnknownApp},
		{d.revoke(), events.UnknownApp},
	} {
		if o := k.decideOne(c.request.draft.Subject(), c.request.payload, testNow); o.Reason != c.want {
			t.Errorf("a %s: reason %q, want %q", c.request.draft.Kind, o.Reason, c.want)
		}
	}
}

// TestClockBehind: time never runs backwards within a service, whichever replica's clock is behind.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	k := newBook(t, Rules{})
	d := k.developer("org.omiappreg.alice", "cms")
	d.now = func() time.Time { return time.Unix(testNow, 0) }
	first := k.decideAll(d.bind())[0].Event
	k.now -= 3600
	second := k.decideAll(d.rotate())[0].Event
	if second.Timestamp != first.Timestamp || second.GracePeriodExpiry != first.Timestamp+300 {
		t.Errorf("bound at %d, rotated at %d with a grace until %d", first.Timestamp, second.Timestamp, second.GracePeriodExpiry)
	}
}

// TestSecondsInDetails: whoever is refused for the time is told by how many seconds, and what to do about it.
func TestSecondsInDetails(t *testing.T) {
	t.Parallel()
	k := newBook(t, Rules{RotationsPerMinute: 1})
	d := k.developer("org.omiappreg.alice", "cms")
	k.decideAll(d.bind(), d.rotate())
	signed := func(seconds int64, kind events.RequestKind, by events.SigningKey) request {
		one := *d
		one.now = func() time.Time { return time.Unix(testNow+seconds, 0) }
		return one.sign(kind, events.GenerateSigningKey(), by)
	}
	for _, c := range []struct {
		request  request
		storedAt int64
		reason   events.Reason
		detail   []string
	}{
		{signed(-301, events.Rotation, d.current), testNow, events.TimestampOutOfWindow, []string{"301 s before", "300 s", "clock is probably behind"}},
		{signed(7200, events.Reset, d.master), testNow, events.TimestampOutOfWindow, []string{"7200 s after", "300 s", "clock is probably ahead"}},
		{signed(0, events.Rotation, d.current), testNow + 18, events.RateLimited, []string{"1 times a minute", "try again in 42 s"}},
		{signed(-9, events.Reset, d.master), testNow, events.TimestampOutOfOrder, []string{"9 s before", "clock"}},
	} {
		o := k.decideOne(c.request.draft.Subject(), c.request.payload, c.storedAt)
		if o.Reason != c.reason {
			t.Errorf("%q (%s), want %s", o.Reason, o.Detail, c.reason)
		}
		for _, text := range c.detail {
			if !strings.Contains(o.Detail, text) {
				t.Errorf("%s: %q lacks %q", o.Reason, o.Detail, text)
			}
		}
	}
}

// TestKeyOfAnotherInTheBatch: the checks keep their order (§6) also where what decides came in the same batch, for
// another service.
func TestKeyOfAnotherInTheBatch(t *testing.T) {
	t.Parallel()
	for name, claimedFirst := range map[string]bool{"claimed before": true, "claimed after": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newBook(t, Rules{RotationsPerMinute: 1})
			a := k.developer("org.omiappreg.alice", "a")
			b := a.another("b")
			k.decideAll(a.bind(), b.bind())
			shared := events.GenerateSigningKey()
			claim := a.sign(events.Rotation, shared, a.current)
			allowed := b.rotate()
			tooMany := b.sign(events.Rotation, shared, b.current)
			list, want := []request{claim, allowed, tooMany}, events.KeyInUse
			if !claimedFirst {
				list, want = []request{allowed, tooMany, claim}, events.RateLimited
			}
			for i, o := range k.decideAll(list...) {
				if &list[i].payload[0] != &tooMany.payload[0] {
					if o.Verdict != Committed {
						t.Errorf("request %d: %s", i, o.Reason)
					}
				} else if o.Reason != want {
					t.Errorf("the second rotation: %q, want %q", o.Reason, want)
				}
			}
		})
	}
}

// TestLooks: earlier keys are looked at for so many requests of a service a second, and the others are refused all the
// same; other services have looks of their own.
func TestLooks(t *testing.T) {
	t.Parallel()
	k := newBook(t, Rules{})
	flooded := k.developer("org.omiappreg.alice", "flooded")
	other := flooded.another("other")
	old := map[*developer]events.SigningKey{}
	for _, d := range []*developer{flooded, other} {
		bind := d.bind()
		old[d] = d.current
		k.decideAll(bind, d.rotate())
	}
	with := func(d *developer) request { return d.sign(events.Rotation, events.GenerateSigningKey(), old[d]) }
	var list []request
	for range VerificationsASecond + 5 {
		list = append(list, with(flooded))
	}
	half := len(list) / 2
	outcomes := append(k.decideAll(list[:half]...), k.decideAll(list[half:]...)...)
	for i, o := range outcomes {
		want := events.SupersededKey
		if i >= VerificationsASecond {
			want = events.InvalidSignature
		}
		if o.Reason != want {
			t.Errorf("request %d: %q, want %q", i+1, o.Reason, want)
		}
	}
	if o := k.decideAll(with(other))[0]; o.Reason != events.SupersededKey {
		t.Errorf("another service: %q", o.Reason)
	}
	k.now++
	if o := k.decideAll(with(flooded))[0]; o.Reason != events.SupersededKey {
		t.Errorf("a second later: %q", o.Reason)
	}
}
