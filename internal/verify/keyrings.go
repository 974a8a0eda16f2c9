package verify

import (
	"hash/maphash"
	"maps"
	"sync/atomic"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

const (
	// shards bounds what a new service costs: one map of so many is copied, which for a million services has 244.
	shards = 4096
	// endedKept is how many ended keys of a service are remembered, to say "expired" of a signature and not "invalid".
	endedKept = 8
)

// keyrings are the keyrings of all services. Any number of goroutines read while one writes, without a lock: all that
// a reader reaches is immutable, and is exchanged whole. A map is copied only for a service that is new; a change to
// one that is there exchanges a pointer.
type keyrings struct {
	seed   maphash.Seed
	shards [shards]atomic.Pointer[shard]
}

type shard map[events.Target]*atomic.Pointer[known]

// known is what the memory holds of one service. It is immutable.
type known struct {
	keyring  keyring.Keyring
	sequence int64 // the highest of any event; 0: the registry sends none
}

func newKeyrings() *keyrings {
	return &keyrings{seed: maphash.MakeSeed()}
}

func (k *keyrings) shard(target events.Target) *atomic.Pointer[shard] {
	return &k.shards[maphash.Comparable(k.seed, target)%shards]
}

// find returns what is known of a service, or nil. Any goroutine may call it.
func (k *keyrings) find(target events.Target) *known {
	if m := k.shard(target).Load(); m != nil {
		if p := (*m)[target]; p != nil {
			return p.Load()
		}
	}
	return nil
}

// load takes what was known of a service before. It must not run beside anything else: it writes to maps in place, so
// that a million services take no million copies.
func (k *keyrings) load(target events.Target, have known, now int64) {
	at := k.shard(target)
	m := at.Load()
	if m == nil {
		m = &shard{}
		at.Store(m)
	}
	have.keyring = have.keyring.Recent(now, endedKept)
	(*m)[target] = pointer(have)
}

// apply joins an event. Only one goroutine at a time may call it.
func (k *keyrings) apply(e *events.Invalidation, now int64) {
	at := k.shard(e.Target)
	var old shard
	if m := at.Load(); m != nil {
		old = *m
	}
	if p := old[e.Target]; p != nil {
		next := p.Load().apply(e, now)
		p.Store(&next)
		return
	}
	grown := maps.Clone(old)
	if grown == nil {
		grown = shard{}
	}
	grown[e.Target] = pointer((&known{}).apply(e, now))
	at.Store(&grown)
}

func (k *known) apply(e *events.Invalidation, now int64) known {
	return known{k.keyring.Apply(e).Recent(now, endedKept), max(k.sequence, e.Sequence)}
}

func pointer(k known) *atomic.Pointer[known] {
	var p atomic.Pointer[known]
	p.Store(&k)
	return &p
}
