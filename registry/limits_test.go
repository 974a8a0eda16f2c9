package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// counting is registries on one database whose policy has limits of the Master Key.
type counting struct {
	t        *testing.T
	store    *Store
	now      int64
	replicas []*intake
	turns    int
}

func newCounting(t *testing.T, url string, policy Policy) *counting {
	t.Helper()
	c := &counting{t: t, store: openStore(t, url), now: testNow}
	policy.Origin = testOrigin
	for range 2 {
		c.replicas = append(c.replicas, newTestIntake(t, c.store, policy, c.time))
	}
	return c
}

func (c *counting) time() time.Time { return time.Unix(c.now, 0) }

func (c *counting) developer(app, service string) *developer {
	d := newDeveloper(c.t, c.store, app, service)
	d.now = c.time
	return d
}

// batch has the replicas decide requests in turn, and returns what became of each: "", or the reason.
func (c *counting) batch(list ...request) []events.Reason {
	c.t.Helper()
	c.turns++
	todo := make([]decision.Incoming, len(list))
	for i, r := range list {
		todo[i] = decision.NewIncoming(r.draft.Subject(), r.payload, c.now, i)
	}
	outcomes, err := decideAndCommit(c.t.Context(), c.replicas[c.turns%len(c.replicas)], todo)
	if err != nil {
		c.t.Fatal(err)
	}
	reasons := make([]events.Reason, len(list))
	for _, o := range outcomes {
		reasons[o.In.Index] = o.Reason
		if o.Reason == events.RateLimited && !strings.Contains(o.Detail, "try again in ") {
			c.t.Errorf("the detail does not say when to try again: %s", o.Detail)
		}
	}
	return reasons
}

// want has some of them refused for a reason, and the others committed.
func (c *counting) want(what string, got []events.Reason, reason events.Reason, refused ...int) {
	c.t.Helper()
	want := make([]events.Reason, len(got))
	for _, i := range refused {
		want[i] = reason
	}
	if fmt.Sprint(want) != fmt.Sprint(got) {
		c.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// resets returns so many resets that do not depend on one another.
func resets(d *developer, n int) (list []request) {
	for range n {
		list = append(list, d.sign(events.Reset, events.GenerateSigningKey(), d.master))
	}
	return list
}

// TestMasterLimits: one Master Key changes its services so often and no more, whichever replica decides; but a service's first
// reset in a day, a revocation and what its own key signs is always let through, and another app's affair.
func TestMasterLimits(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		c := newCounting(t, url, Policy{MasterChangesPerMinute: 3, MasterChangesPerDay: 5})
		a := c.developer("org.omiappreg.mallory", "a")
		b, late := a.another("b"), a.another("late")
		other := c.developer("org.omiappreg.bob", "a")
		c.want("bindings", c.batch(a.bind(), b.bind(), late.bind(), other.bind()), "")
		c.want("a flood of resets in one batch: the first is free", c.batch(resets(a, 8)...), events.RateLimited, 4, 5, 6, 7)
		for range 3 {
			c.want("and one by one", c.batch(resets(a, 1)...), events.RateLimited, 0)
		}
		c.want("the first reset of another service", c.batch(b.reset()), "")
		c.want("its rotation", c.batch(b.rotate()), "")
		c.want("its second reset", c.batch(resets(b, 1)...), events.RateLimited, 0)
		c.want("a revocation, and another app", c.batch(b.revoke(), other.reset(), other.reset()), "")
		c.want("to bind it again", c.batch(b.sign(events.Binding, events.GenerateSigningKey(), b.master)), events.RateLimited, 0)
		c.now += 60
		c.want("a minute later, up to the day's quota", c.batch(resets(a, 4)...), events.RateLimited, 2, 3)
		c.now += 3600
		c.want("an hour later", c.batch(b.sign(events.Binding, events.GenerateSigningKey(), b.master)), events.RateLimited, 0)
		c.want("a service that was never reset", c.batch(late.reset()), "")
		c.now += decision.DaySeconds
		c.want("a day later", c.batch(resets(a, 5)...), events.RateLimited, 4)
		c.want("to bind again: that is not free", c.batch(b.bind()), events.RateLimited, 0)
		replaced := events.GenerateSigningKey()
		if _, err := c.store.Admin().ReplaceMaster(t.Context(), App{a.target.App, replaced.Public()}, c.now); err != nil {
			t.Fatal(err)
		}
		a.master = replaced
		c.now++
		c.want("the first reset by a new Master Key", c.batch(resets(a, 1)...), "")
	})
}

// TestServicesPerApp: an app binds so many services, the first ones in the stream, and others of its name's kin don't count.
func TestServicesPerApp(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		c := newCounting(t, url, Policy{ServicesPerApp: 5})
		d := c.developer("org.omiappreg.mallory", "s-0")
		kin := c.developer("org.omiappreg.mallory.below", "s-0")
		c.want("another app whose name goes on", c.batch(kin.bind(), kin.another("s-1").bind()), "")
		var list []request
		for i := range 8 {
			list = append(list, d.another(fmt.Sprint("s-", i)).bind())
		}
		c.want("eight at once", c.batch(list...), events.TooManyServices, 5, 6, 7)
		c.want("by the other replica", c.batch(d.another("s-8").bind()), events.TooManyServices, 0)
		first := d.another("s-0")
		c.want("a revocation makes no room", c.batch(first.revoke(), d.another("s-9").bind()), events.TooManyServices, 1)
		c.want("but what was bound may be bound again", c.batch(first.bind()), "")
		c.want("the other app", c.batch(kin.another("s-2").bind()), "")
		checkServices(t, c.store, map[string]int64{d.target.App.String(): 5, kin.target.App.String(): 3})
	})
}

func checkServices(t *testing.T, store *Store, want map[string]int64) {
	t.Helper()
	for app, n := range want {
		var have int64
		if err := store.db.QueryRow(t.Context(), "SELECT services FROM app_use WHERE app_id = $1", app).Scan(&have); err != nil || have != n {
			t.Errorf("%s has %d services, %v; want %d", app, have, err, n)
		}
	}
}

// TestRotationsCountNothing: what counts for an app is neither read nor written for a rotation.
func TestRotationsCountNothing(t *testing.T) {
	t.Parallel()
	c := newCounting(t, testenv.Database(t, testenv.SQLite), Policy{})
	d := c.developer("org.omiappreg.alice", "a")
	c.want("a binding", c.batch(d.bind()), "")
	if _, err := c.store.db.Exec(t.Context(), "DROP TABLE app_use"); err != nil {
		t.Fatal(err)
	}
	c.want("rotations and a revocation, without that table", c.batch(d.rotate(), d.rotate(), d.revoke()), "")
	bind := d.bind()
	todo := []decision.Incoming{decision.NewIncoming(bind.draft.Subject(), bind.payload, c.now, 0)}
	if _, err := decideAndCommit(t.Context(), c.replicas[0], todo); err == nil {
		t.Error("a binding that counts nothing was committed")
	}
}

// TestLimitAcrossBatches: where one batch is decided while the one before it is committed, both count.
func TestLimitAcrossBatches(t *testing.T) {
	t.Parallel()
	const most, asked = 7, 40
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "s-0")
	r, err := New(Config{
		Policy: Policy{Origin: testOrigin, ServicesPerApp: most}, Batch: 4, Key: testKey, Store: w.store,
		Conn: testenv.Connect(t, w.broker.URL()), Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureStreams(t.Context(), w.js, 1); err != nil {
		t.Fatal(err)
	}
	var targets []events.Target
	for i := range asked {
		one := d.another(fmt.Sprint("s-", i))
		targets = append(targets, one.target)
		w.publish(one.bind())
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	committed := 0
	for _, target := range targets {
		testenv.Eventually(t, patience, "the request is answered", func() error {
			list := w.receipts(target)
			if len(list) == 0 {
				return errors.New("no receipt")
			}
			if list[0].Event == events.RequestCommitted {
				committed++
			} else if list[0].Reason != events.TooManyServices {
				t.Errorf("%s: %s", target, list[0].Reason)
			}
			return nil
		})
	}
	if committed != most {
		t.Errorf("%d services are bound, want %d", committed, most)
	}
}
