package queue

import (
	"context"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
)

// A name that no service has costs nothing to invent, and a receipt for it would be kept for days.
// So requests for unbound names share one queue and one budget with garbage. Beyond the budget they
// are acknowledged, counted and not answered. A service gets its name by a binding: if the app's
// Master Key signed one, the name counts as bound from there on, so the requests right behind the
// binding keep their order.
//
//	receive ──▶ known to be bound, or little waits ──────────────────▶ its queue
//	   └─▶ unsorted ──▶ sort: asks the database, many at a time
//	                     ├── bound, or a binding by the Master Key ──▶ its queue
//	                     └── within the budget ──▶ the queue of garbage

const (
	sortFrom    = 256    // waiting messages: with fewer, it doesn't matter who they are for
	boundAtMost = 65_536 // services that are remembered as bound; some 100 bytes each

	tellEach = 10 * time.Second // the log gets one line for all failures in this time
)

// boundNames remembers which services are bound. It is safe for concurrent use.
type boundNames struct {
	seed maphash.Seed
	// known: hashes: if two are equal, a stranger gets a queue of its own.
	known *lru.Cache[uint64, struct{}]
}

func newBoundNames() *boundNames {
	known, err := lru.New[uint64, struct{}](boundAtMost)
	if err != nil {
		panic("queue: " + err.Error()) // it refuses only sizes below 1
	}
	return &boundNames{maphash.MakeSeed(), known}
}

// has reports whether a service is remembered as bound.
func (b *boundNames) has(t events.Target) bool {
	_, known := b.known.Get(maphash.Comparable(b.seed, t))
	return known
}

func (b *boundNames) add(t events.Target) {
	b.known.Add(maphash.Comparable(b.seed, t), struct{}{})
}

// ask asks which of these messages are for bound services, and remembers those. masters are the
// Master Keys of the apps of the other messages that are bindings.
func (q *Queue) ask(ctx context.Context, list []*item) (masters map[events.AppID]events.PublicKey, err error) {
	targets := make([]events.Target, len(list))
	for i, it := range list {
		targets[i] = it.request.Request.Target
	}
	bound, err := q.cfg.Bound(ctx, targets)
	if err != nil {
		return nil, err
	}
	for _, t := range bound {
		q.known.add(t)
	}
	var apps []events.AppID
	for i, it := range list {
		if it.binds() && !q.known.has(targets[i]) {
			apps = append(apps, targets[i].App)
		}
	}
	return q.cfg.MasterKeys(ctx, apps)
}

// binds reports whether the message has the form of a binding.
func (it *item) binds() bool {
	return it.request.Refusal == nil && it.request.Request.Kind == events.Binding
}

// sortFirst keeps a message that must be sorted first, and reports whether it did. It also returns
// true for a copy of a message that is here. The messages of one service keep their order.
func (s *source) sortFirst(it *item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here[it.message.Sequence] != nil {
		return true // they are finished together
	}
	target := it.target()
	if target.IsZero() || s.sorting[target] == 0 && (s.waiting+s.unsorted < sortFrom || s.known.has(target)) {
		return false
	}
	s.here[it.message.Sequence] = it
	s.sorting[target]++
	s.unsorted++
	s.toSort = append(s.toSort, it)
	s.changed.Broadcast()
	return true
}

// sort finds out which services messages are for, until pull has ended.
func (s *source) sort() {
	defer close(s.sorter)
	warnings := rate.Sometimes{First: 1, Interval: tellEach}
	for {
		s.mu.Lock()
		for len(s.toSort) == 0 && s.err == nil {
			s.changed.Wait()
		}
		if s.err != nil {
			s.mu.Unlock()
			return
		}
		list := s.toSort
		s.toSort = nil
		for _, it := range list {
			it.follows = s.queues[it.request.Request.Target] != nil
		}
		s.mu.Unlock()
		masters, err := s.ask(s.ctx, list)
		if err != nil && s.ctx.Err() == nil {
			warnings.Do(func() {
				s.cfg.Log.Warn("can't tell which services are bound; requests that may be for unbound names get queues of their own", "error", err)
			})
		}
		for _, it := range list {
			s.sorted(it, masters, err == nil)
		}
	}
}

// sorted puts a message into the queue where it belongs.
func (s *source) sorted(it *item, masters map[events.AppID]events.PublicKey, asked bool) {
	target := it.request.Request.Target
	to, most := target, inHandEach
	if asked && !it.follows && !s.known.has(target) {
		if it.binds() && signedBy(masters[target.App], it.request.Request) {
			s.known.add(target)
		} else {
			to, most = events.Target{}, inHandGarbage
		}
	}
	s.mu.Lock()
	delete(s.here, it.message.Sequence)
	if s.sorting[target]--; s.sorting[target] == 0 {
		delete(s.sorting, target)
	}
	if s.unsorted--; s.waiting+s.unsorted == waitingAll-1 {
		s.changed.Broadcast()
	}
	s.mu.Unlock()
	if !to.IsZero() || s.pay(it) {
		s.enqueue(it, to, most)
	}
}

// signedBy reports whether the Master Key signed a binding: anyone can write what looks like one.
func signedBy(master events.PublicKey, r *events.Request) bool {
	return !master.IsZero() && master.Verify(r.Signed, r.Signature)
}

// The budget for garbage.
const (
	GarbageAnswers = 100         // receipts a second without a readable nonce, or for unbound names
	GarbageBurst   = waitingEach // as many as may wait here
)

// Why garbage is dropped, in the metric and in the log.
const (
	unanswered   = "unanswered"   // there is more than the budget for answers allows
	Unanswerable = "unanswerable" // its subject names no service that could read an answer
)

// budget limits how much garbage is answered, and counts the rest. It is safe for concurrent use.
type budget struct {
	answers *rate.Limiter
	results *prometheus.CounterVec // requests by kind and result

	mu      sync.Mutex
	dropped map[string]int // by reason, since the last line in the log
}

func newBudget(results *prometheus.CounterVec) *budget {
	return &budget{answers: rate.NewLimiter(GarbageAnswers, GarbageBurst), results: results, dropped: map[string]int{}}
}

// Charge takes one answer from the budget, and reports whether there was one. Otherwise a message
// is not answered, and is counted.
func (b *budget) Charge() bool {
	if b.answers.Allow() {
		return true
	}
	b.drop(unanswered)
	return false
}

// drop counts garbage that gets no answer.
func (b *budget) drop(why string) {
	b.results.WithLabelValues("", why).Inc()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropped[why]++
}

// tell logs what was dropped since the last call.
func (b *budget) tell(log *slog.Logger) {
	b.mu.Lock()
	dropped := b.dropped
	b.dropped = map[string]int{}
	b.mu.Unlock()
	if len(dropped) > 0 {
		log.Warn("dropped garbage: it has no nonce or is for an unknown service and exceeds the budget for answers, or its subject names no service",
			unanswered, dropped[unanswered], Unanswerable, dropped[Unanswerable])
	}
}
