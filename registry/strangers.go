package registry

import (
	"context"
	"hash/maphash"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
)

// A name that no service has costs nothing to invent, and a receipt for it would be kept for days.
// So requests for unbound names share one lane and one budget with garbage. Beyond the budget they
// are acknowledged, counted and not answered. A service gets its name by a binding: if the app's
// Master Key signed one, the name counts as bound from there on, so the requests right behind the
// binding keep their order.
//
// 	take ──▶ known to be bound, or little waits ─────────────────────────────▶ its lane
// 	  └────▶ unsorted ──▶ sort: asks the database, many at a time ──▶ bound ──▶ its lane
// 	                                              ├── a binding by the app's Master Key ──▶ its lane
// 	                                              └── within the budget ──▶ the lane of garbage

const (
	sortFrom    = 256    // waiting messages: with fewer, it doesn't matter who they are for
	knownAtMost = 65_536 // services that are remembered as bound; some 100 bytes each

	tellEach = 10 * time.Second // the log gets one line for all failures in this time
)

// acquaintances remembers which services are bound. It is safe for concurrent use.
type acquaintances struct {
	seed maphash.Seed
	// known: hashes: if two are equal, a stranger gets a lane of its own.
	known *lru.Cache[uint64, struct{}]
}

func newAcquaintances() *acquaintances {
	known, err := lru.New[uint64, struct{}](knownAtMost)
	if err != nil {
		panic("registry: " + err.Error()) // it refuses only sizes below 1
	}
	return &acquaintances{maphash.MakeSeed(), known}
}

// knows reports whether a service is remembered as bound.
func (a *acquaintances) knows(t events.Target) bool {
	_, known := a.known.Get(maphash.Comparable(a.seed, t))
	return known
}

func (a *acquaintances) learn(t events.Target) {
	a.known.Add(maphash.Comparable(a.seed, t), struct{}{})
}

// meet asks which of these messages are for bound services, and remembers those. masters are the
// Master Keys of the apps of the other messages that are bindings.
func (f *fair) meet(ctx context.Context, list []*delivery) (masters map[events.AppID]events.PublicKey, err error) {
	targets := make([]events.Target, len(list))
	for i, d := range list {
		targets[i] = d.request.Request.Target
	}
	bound, err := f.cfg.bound(ctx, targets)
	if err != nil {
		return nil, err
	}
	for _, t := range bound {
		f.acquainted.learn(t)
	}
	var apps []events.AppID
	for i, d := range list {
		if d.binds() && !f.acquainted.knows(targets[i]) {
			apps = append(apps, targets[i].App)
		}
	}
	return f.cfg.masterKeys(ctx, apps)
}

// binds reports whether the message has the form of a binding.
func (d *delivery) binds() bool {
	return d.request.Refusal == nil && d.request.Request.Kind == events.Binding
}

// setAside keeps a message that must be sorted first, and reports whether it did. It also returns
// true for a copy of a message that is here. The messages of one service keep their order.
func (t *turns) setAside(d *delivery) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[d.message.Sequence] != nil {
		return true // they are settled together
	}
	target := d.target()
	if target.IsZero() || t.sorting[target] == 0 && (t.waiting+t.unsorted < sortFrom || t.acquainted.knows(target)) {
		return false
	}
	t.known[d.message.Sequence] = d
	t.sorting[target]++
	t.unsorted++
	t.strangers = append(t.strangers, d)
	t.changed.Broadcast()
	return true
}

// sort finds out which services messages are for, until pull has ended.
func (t *turns) sort() {
	defer close(t.sorter)
	warnings := rate.Sometimes{First: 1, Interval: tellEach}
	for {
		t.mu.Lock()
		for len(t.strangers) == 0 && t.err == nil {
			t.changed.Wait()
		}
		if t.err != nil {
			t.mu.Unlock()
			return
		}
		list := t.strangers
		t.strangers = nil
		for _, d := range list {
			d.follows = t.lanes[d.request.Request.Target] != nil
		}
		t.mu.Unlock()
		masters, err := t.meet(t.ctx, list)
		if err != nil && t.ctx.Err() == nil {
			warnings.Do(func() {
				t.cfg.log.Warn("can't tell which services are bound; requests that may be for unbound names get queues of their own", "error", err)
			})
		}
		for _, d := range list {
			t.sorted(d, masters, err == nil)
		}
	}
}

// sorted puts a message into the lane where it belongs.
func (t *turns) sorted(d *delivery, masters map[events.AppID]events.PublicKey, asked bool) {
	target := d.request.Request.Target
	lane, most := target, inHandEach
	if asked && !d.follows && !t.acquainted.knows(target) {
		if d.binds() && signedBy(masters[target.App], d.request.Request) {
			t.acquainted.learn(target)
		} else {
			lane, most = events.Target{}, inHandGarbage
		}
	}
	t.mu.Lock()
	delete(t.known, d.message.Sequence)
	if t.sorting[target]--; t.sorting[target] == 0 {
		delete(t.sorting, target)
	}
	if t.unsorted--; t.waiting+t.unsorted == waitingAll-1 {
		t.changed.Broadcast()
	}
	t.mu.Unlock()
	if !lane.IsZero() || t.pay(d) {
		t.queue(d, lane, most)
	}
}

// signedBy reports whether the Master Key signed a binding: anyone can write what looks like one.
func signedBy(master events.PublicKey, r *events.Request) bool {
	return !master.IsZero() && master.Verify(r.Signed, r.Signature)
}
