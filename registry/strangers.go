package registry

import (
	"context"
	"fmt"
	"hash/maphash"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
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
)

// acquaintances remembers which services are bound. It is safe for concurrent use.
type acquaintances struct {
	store *Store
	seed  maphash.Seed
	// known: hashes: if two are equal, a stranger gets a lane of its own.
	known *lru.Cache[uint64, struct{}]
}

func newAcquaintances(store *Store) *acquaintances {
	known, err := lru.New[uint64, struct{}](knownAtMost)
	if err != nil {
		panic("registry: " + err.Error()) // it refuses only sizes below 1
	}
	return &acquaintances{store, maphash.MakeSeed(), known}
}

// knows reports whether a service is remembered as bound. A nil value knows all services.
func (a *acquaintances) knows(t events.Target) bool {
	if a == nil {
		return true
	}
	_, known := a.known.Get(maphash.Comparable(a.seed, t))
	return known
}

func (a *acquaintances) learn(t events.Target) {
	a.known.Add(maphash.Comparable(a.seed, t), struct{}{})
}

// boundOf finds services by the unique index of services (target).
func boundOf(e sqldb.Engine) string {
	return "SELECT target FROM (%s) AS v " + e.LookupJoin() + " services ON target = v.column1"
}

// meet asks the database which of these messages are for bound services, and remembers those.
// masters are the Master Keys of the apps of the other messages that are bindings.
func (a *acquaintances) meet(ctx context.Context, list []*delivery) (masters map[events.AppID]events.PublicKey, err error) {
	st, w := decision.NewState(), newWantedServices(len(list))
	apps := map[events.AppID]bool{}
	for _, d := range list {
		w.service(d.request.Request.Target)
	}
	query := boundOf(a.store.db.Engine())
	err = a.store.eachPartAgain(ctx, query, []sqldb.Type{sqldb.Text}, w.names, func(row sqldb.Row) error {
		var name string
		err := row.Scan(&name)
		a.learn(w.targets[name])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask which services are bound: %w", err)
	}
	for _, d := range list {
		if app := d.request.Request.Target.App; d.binds() && !a.knows(d.request.Request.Target) && decision.Once(apps, app) {
			w.apps = append(w.apps, app.String())
		}
	}
	if err := a.store.loadApps(ctx, w, st); err != nil {
		return nil, fmt.Errorf("ask for the apps of bindings: %w", err)
	}
	return st.Masters, nil
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
	warnings := rate.Sometimes{First: 1, Interval: warnEach}
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
		masters, err := t.acquainted.meet(t.ctx, list)
		if err != nil && t.ctx.Err() == nil {
			warnings.Do(func() {
				t.log.Warn("can't tell which services are bound; requests that may be for unbound names get queues of their own", "error", err)
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

// thin drops the refusals of requests for unbound names beyond the budget.
func (w *work) thin(b *decision.Batch) {
	for _, g := range b.Groups {
		if g.Existed || g.Changed() {
			continue
		}
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			if o.Verdict != decision.Refused || w.messages[o.In.Index].Payload.paid {
				continue
			}
			if o.Dropped = !w.garbage.allow(); o.Dropped {
				w.garbage.drop(unanswered)
			}
		}
	}
}
