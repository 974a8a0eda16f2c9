package client

import (
	"math"
	"sync"
	"time"

	"omiappreg.org/keyrotation/events"
)

// nonces remembers which nonces were used, for as long as the signatures that carry them are of an
// acceptable age. Only the nonces of valid signatures are kept, and each caller has a memory of its
// own: a flood by one costs the others nothing.
//
// A full memory must not forget what could come again. So it forgets whole seconds, the oldest
// first, and accepts nothing more of those: the more a caller sends, the faster its requests must
// arrive.
type nonces struct {
	limit  int
	window int64 // seconds
	now    func() time.Time

	mu      sync.Mutex
	callers map[events.Target]*usedNonces
	swept   int64
}

// usedNonces is the memory of one caller.
type usedNonces struct {
	seconds map[int64]map[events.Nonce]struct{} // by the time of the signature
	count   int
	floor   int64 // what was signed in this second or before is forgotten
	swept   int64
}

func newNonces(limit int, window int64, now func() time.Time) *nonces {
	return &nonces{limit: limit, window: window, now: now, callers: make(map[events.Target]*usedNonces)}
}

// use returns an [*events.Refusal] if the caller has used the nonce before, or may have. A nonce
// that has grown too old since a slow request came in may be forgotten already. So the clock is
// read here, under the lock that forgetting needs.
func (n *nonces) use(caller events.Target, nonce events.Nonce, created int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now().Unix()
	n.sweep(now)
	u := n.callers[caller]
	if u == nil {
		u = &usedNonces{seconds: make(map[int64]map[events.Nonce]struct{}), floor: math.MinInt64}
		n.callers[caller] = u
	}
	u.sweep(now-n.window, now)
	if _, used := u.seconds[created][nonce]; used {
		return refusal(events.NonceReused, "This nonce was used before: sign every request again, with its own nonce.")
	}
	if created < now-n.window {
		return refusal(events.TimestampOutOfWindow, "It took too long to arrive: sign it again.")
	}
	for u.count > 0 && u.count >= n.limit {
		u.forgetOldest()
	}
	if created <= u.floor {
		return refusal(events.TimestampOutOfWindow,
			"This service sent so many requests that requests of this age are no longer accepted: sign it again.")
	}
	if u.seconds[created] == nil {
		u.seconds[created] = make(map[events.Nonce]struct{})
	}
	u.seconds[created][nonce] = struct{}{}
	u.count++
	return nil
}

// sweep forgets, once per window, the callers that have nothing left to remember.
func (n *nonces) sweep(now int64) {
	if now-n.swept < n.window {
		return
	}
	n.swept = now
	for caller, u := range n.callers {
		if u.sweep(now-n.window, now); u.count == 0 && u.floor < now-n.window {
			delete(n.callers, caller)
		}
	}
}

// sweep forgets, once per second, the nonces that are too old to come again.
func (u *usedNonces) sweep(oldest, now int64) {
	if u.swept == now {
		return
	}
	u.swept = now
	for second := range u.seconds {
		if second < oldest {
			u.forget(second)
		}
	}
}

func (u *usedNonces) forgetOldest() {
	oldest := int64(math.MaxInt64)
	for second := range u.seconds {
		oldest = min(oldest, second)
	}
	u.forget(oldest)
	u.floor = max(u.floor, oldest)
}

func (u *usedNonces) forget(second int64) {
	u.count -= len(u.seconds[second])
	delete(u.seconds, second)
}
