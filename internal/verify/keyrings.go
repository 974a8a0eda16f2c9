package verify

import (
	"hash/maphash"
	"slices"
	"sync/atomic"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

const (
	// shards bounds what a change costs: all that is known of one of so many parts is copied, which for a million services
	// is 4 KiB.
	shards = 1 << 15
	// endedKept is how many ended keys of a service are remembered, to say "expired" of a signature and not "invalid".
	endedKept = 8
)

// keyrings are the keyrings of all services. Any number of goroutines read while one writes, without a lock: all that
// a reader reaches is immutable, and is exchanged whole.
type keyrings struct {
	seed   maphash.Seed
	shards []atomic.Pointer[shard] // a power of two of them
	packed record                  // what was packed last: room for the next
}

// shard is the records of the services whose names share a part of their hash.
type shard struct {
	index   []entry
	records []byte
}

// entry is how a service is found in its shard.
type entry struct {
	mark uint32 // another part of its hash
	end  uint32 // where its record ends
}

// known is what is known of one service.
type known struct {
	keyring  keyring.Keyring
	sequence int64 // the highest of any event; 0: the registry sends none
}

func newKeyrings(shards int) *keyrings {
	return &keyrings{seed: maphash.MakeSeed(), shards: make([]atomic.Pointer[shard], shards)}
}

// place returns where a service is, and by which mark.
func (k *keyrings) place(target events.Target) (at *atomic.Pointer[shard], mark uint32) {
	hash := maphash.Comparable(k.seed, target)
	return &k.shards[hash&uint64(len(k.shards)-1)], uint32(hash >> 32)
}

// find returns what is known of a service, or false. Any goroutine may call it.
func (k *keyrings) find(target events.Target, into *room) (have known, found bool) {
	at, mark := k.place(target)
	if i, keys := at.Load().find(mark, target); i >= 0 {
		return keys.unpack(into), true
	}
	return known{}, false
}

// load takes what was known of a service before. It must not run beside anything else: it writes in place, so that a
// million services take no million copies.
func (k *keyrings) load(target events.Target, have known, now int64) {
	have.keyring = have.keyring.Recent(now, endedKept)
	at, mark := k.place(target)
	s := at.Load()
	i, _ := s.find(mark, target)
	k.pack(s, i, target, &have)
	if i >= 0 {
		at.Store(s.with(i, k.packed))
		return
	}
	if s == nil {
		s = &shard{}
		at.Store(s)
	}
	s.records = append(grown(s.records, len(k.packed)), k.packed...)
	s.index = append(s.index, entry{mark, uint32(len(s.records))})
}

// grown returns a slice with room for n more, and for little beyond that: append alone would leave a quarter empty.
func grown(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	return append(make([]byte, 0, len(b)+len(b)/8+n), b...)
}

// apply joins an event. Only one goroutine at a time may call it.
func (k *keyrings) apply(e *events.Invalidation, now int64) {
	k.change(e.Target, func(have known) known { return have.apply(e, now) })
}

// change exchanges what is known of a service. Only one goroutine at a time may call it.
func (k *keyrings) change(target events.Target, next func(have known) known) {
	at, mark := k.place(target)
	var (
		room room
		have known
	)
	s := at.Load()
	i, keys := s.find(mark, target)
	if i >= 0 {
		have = keys.unpack(&room)
	}
	have = next(have)
	k.pack(s, i, target, &have)
	if i < 0 {
		at.Store(s.and(mark, k.packed))
	} else {
		at.Store(s.with(i, k.packed))
	}
}

// pack makes the record of a service that is at this place of the shard; -1: it is new there.
func (k *keyrings) pack(s *shard, i int, target events.Target, have *known) {
	k.packed = appendRecord(k.packed[:0], s.app(i, target.App), target, have)
}

func (k known) apply(e *events.Invalidation, now int64) known {
	return known{k.keyring.Apply(e).Recent(now, endedKept), max(k.sequence, e.Sequence)}
}

func (k known) join(other keyring.Keyring, sequence, now int64) known {
	return known{k.keyring.Join(other.Recent(now, endedKept)).Recent(now, endedKept), max(k.sequence, sequence)}
}

func (k known) equal(other known) bool {
	return k.sequence == other.sequence && k.keyring.Head == other.keyring.Head &&
		slices.Equal(k.keyring.Keys, other.keyring.Keys) && slices.Equal(k.keyring.Cutoffs, other.keyring.Cutoffs)
}

// find returns the place of a service and its keys, or -1.
func (s *shard) find(mark uint32, target events.Target) (int, record) {
	if s == nil {
		return -1, nil
	}
	for i, have := range s.index {
		if have.mark != mark {
			continue
		}
		place, app, service, keys := s.record(i).names()
		if string(service) != target.Service.String() {
			continue
		}
		if place != own {
			_, app, _, _ = s.record(place - 1).names()
		}
		if string(app) == target.App.String() {
			return i, keys
		}
	}
	return -1, nil
}

// app returns what the record of service i says of its app, and for a new service, -1, what it is to say.
func (s *shard) app(i int, app events.AppID) int {
	if i >= 0 {
		place, _, _, _ := s.record(i).names()
		return place
	}
	if s != nil {
		for i := range s.index {
			if place, have, _, _ := s.record(i).names(); place == own && string(have) == app.String() {
				return i + 1
			}
		}
	}
	return own
}

func (s *shard) start(i int) uint32 {
	if i == 0 {
		return 0
	}
	return s.index[i-1].end
}

func (s *shard) record(i int) record { return s.records[s.start(i):s.index[i].end] }

// and returns the shard with a service more.
func (s *shard) and(mark uint32, r record) *shard {
	if s == nil {
		s = &shard{}
	}
	records := slices.Concat(s.records, r)
	end := uint32(len(records))
	return &shard{index: slices.Concat(s.index, []entry{{mark, end}}), records: records}
}

// with returns the shard with another record of its service i.
func (s *shard) with(i int, r record) *shard {
	start, end := s.start(i), s.index[i].end
	next := &shard{index: s.index, records: slices.Concat(s.records[:start], r, s.records[end:])}
	if longer := uint32(len(r)) - (end - start); longer != 0 {
		next.index = slices.Clone(s.index)
		for j := i; j < len(next.index); j++ {
			next.index[j].end += longer
		}
	}
	return next
}
