package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

const (
	// shards bounds the cost of a change, which copies one whole part: some two kilobytes for a
	// million services with two keys each.
	shards = 1 << 16
	// endedKept is how many ended keys of a service are remembered, so that a refusal can say
	// "expired" instead of "invalid".
	endedKept = 8
)

// keyrings holds the keyrings of all services. Any number of goroutines read while one writes,
// without a lock: everything that a reader reaches is immutable, and is replaced as a whole.
type keyrings struct {
	seed   maphash.Seed
	shards []atomic.Pointer[shard] // their number is a power of two

	// Only the writer uses the fields below.
	packed record // the last packed record, whose memory is used again
	room   room
}

// known is the state of one service.
type known struct {
	keyring  keyring.Keyring
	sequence int64 // the highest of any event; 0: the registry sends none
}

func newKeyrings(shards int) *keyrings {
	return &keyrings{seed: maphash.MakeSeed(), shards: make([]atomic.Pointer[shard], shards)}
}

// place returns the shard of a service, and the mark of the service in it.
func (k *keyrings) place(target events.Target) (at *atomic.Pointer[shard], mark byte) {
	hash := maphash.Comparable(k.seed, target)
	return &k.shards[hash&uint64(len(k.shards)-1)], byte(hash >> 56)
}

// find returns the record of a service, or nil if it is unknown. Any goroutine may call it.
func (k *keyrings) find(target events.Target) record {
	at, mark := k.place(target)
	_, r := at.Load().find(mark, target)
	return r
}

// load adds a service at the start. Nothing may run concurrently: it writes in place, so that a
// million services don't need a million copies.
func (k *keyrings) load(target events.Target, have known, now int64) {
	have.keyring = have.keyring.Recent(now, endedKept)
	k.packed = appendRecord(k.packed[:0], &have)
	at, mark := k.place(target)
	s := at.Load()
	if i, old := s.find(mark, target); i >= 0 {
		at.Store(s.with(i, old, k.packed))
		return
	}
	if s == nil {
		s = &shard{}
		at.Store(s)
	}
	*s = s.add(mark, target, k.packed, longer)
}

// longer returns a longer slice, in the same memory if there is room. Otherwise it allocates little
// more than needed: append alone would leave a quarter empty.
func longer(b []byte, more int) []byte {
	if n := len(b) + more; cap(b) < n {
		return slices.Grow([]byte(nil), n+n/16)[:n]
	}
	return b[:len(b)+more]
}

// fresh returns a longer slice, in memory of its own.
func fresh(b []byte, more int) []byte { return make([]byte, len(b)+more) }

// apply joins an event. Only one goroutine at a time may call it.
func (k *keyrings) apply(e *events.Invalidation, now int64) {
	k.change(e.Target, func(have record) record {
		next, ok := have.follow(k.packed[:0], e, now)
		if !ok {
			after := have.unpack(&k.room).apply(e, now)
			next = appendRecord(k.packed[:0], &after)
		}
		return next
	})
}

// join joins the state of a service from a database. Only one goroutine at a time may call it.
func (k *keyrings) join(target events.Target, other known, now int64) {
	k.change(target, func(have record) record {
		after := have.unpack(&k.room).join(other, now)
		return appendRecord(k.packed[:0], &after)
	})
}

// change replaces the record of a service.
func (k *keyrings) change(target events.Target, next func(have record) record) {
	at, mark := k.place(target)
	s := at.Load()
	i, have := s.find(mark, target)
	k.packed = next(have)
	if s == nil {
		s = &shard{}
	}
	switch {
	case i < 0:
		added := s.add(mark, target, k.packed, fresh)
		at.Store(&added)
	case !bytes.Equal(have, k.packed): // otherwise it says nothing new
		at.Store(s.with(i, have, k.packed))
	}
}

func (k known) apply(e *events.Invalidation, now int64) known {
	return known{k.keyring.Apply(e).Recent(now, endedKept), max(k.sequence, e.Sequence)}
}

func (k known) join(other known, now int64) known {
	return known{k.keyring.Join(other.keyring.Recent(now, endedKept)).Recent(now, endedKept), max(k.sequence, other.sequence)}
}

func (k known) equal(other known) bool {
	return k.sequence == other.sequence && k.keyring.Head == other.keyring.Head &&
		slices.Equal(k.keyring.Keys, other.keyring.Keys) && slices.Equal(k.keyring.Cutoffs, other.keyring.Cutoffs)
}

const (
	// endedTried limits how many ended keys are tried against a signature that no remembered key
	// made.
	endedTried = 256
	// endedASecond limits these verifications to so many a second: 0.05 s of a core. A signature
	// that is not tried against them is answered with invalid_signature, which is a refusal as
	// well.
	endedASecond = 1024
	// readingEnded is the least number of verifications that a request is charged, because the keys
	// must be read.
	readingEnded = 16
)

// ended asks for the ended keys that are not remembered.
type ended struct {
	// nil if there is no source
	keys    func(ctx context.Context, target events.Target, most int) (keyring.Keyring, error)
	timeout time.Duration
	now     func() time.Time
	log     *slog.Logger
	limit   *rate.Limiter
}

func newEnded(cfg Config) *ended {
	return &ended{
		keys: cfg.EndedKeys, timeout: cfg.LookupTimeout, now: cfg.Now, log: cfg.Log,
		limit: rate.NewLimiter(endedASecond, endedASecond),
	}
}

// made reports whether an ended key that is not remembered made the signature. It charges the
// budget before it reads a key.
func (e *ended) made(ctx context.Context, q *events.VerifyQuery, have *known) bool {
	now := e.now()
	if e.keys == nil || !have.mayHaveForgotten(now.Unix()) || !e.limit.AllowN(now, have.costOfEnded()) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	newest, err := e.keys(ctx, q.Target, endedTried)
	if err != nil {
		e.log.DebugContext(ctx, "the keys that have ended can't be read", "target", q.Target.String(), "error", err)
		return false
	}
	k := known{keyring: newest}
	return k.endedState(q, now.Unix(), endedTried) == keyring.Ended
}

// costOfEnded returns the number of verifications to charge for reading and trying the ended keys.
func (k *known) costOfEnded() int {
	if k.sequence == 0 { // the registry sends none: the service may have had any number of keys
		return endedTried
	}
	return int(max(readingEnded, min(k.sequence, endedTried)))
}

// mayHaveForgotten reports whether the service may have had more keys than are remembered.
func (k *known) mayHaveForgotten(now int64) bool {
	kept := 0
	for _, key := range k.keyring.Keys {
		if k.keyring.At(key, now) == keyring.Ended {
			kept++
		}
	}
	return kept >= endedKept
}

// shard holds the services whose names share a part of their hash. All their state is in one piece
// of memory without pointers, because the garbage collector would have to follow pointers. The
// parts that a search reads first lie next to each other:
//
//	marks     another byte of each service's hash
//	ends      where each service's entry ends
//	apps      the names of their apps, each of them once
//	entries   of each service: its name, where its app's name is, its record
//
// A shard that readers have is immutable: a change makes another one.
type shard struct {
	block    []byte
	services uint32 // their number
	apps     uint32 // in bytes
}

const endSize = 4 // in bytes

func (s *shard) marks() []byte { return s.block[:s.services] }
func (s *shard) ends() []byte  { return s.block[s.services:][:endSize*s.services] }
func (s *shard) texts() []byte { return s.block[(1+endSize)*s.services:][:s.apps] }

func (s *shard) entries() []byte { return s.block[(1+endSize)*s.services+s.apps:] }

// bounds returns where entry i begins and ends.
func (s *shard) bounds(i int) (from, to uint32) {
	ends := s.ends()
	if i > 0 {
		from = binary.LittleEndian.Uint32(ends[endSize*(i-1):])
	}
	return from, binary.LittleEndian.Uint32(ends[endSize*i:])
}

// find returns the index of a service and its record; the index is -1 if the service isn't there.
func (s *shard) find(mark byte, target events.Target) (int, record) {
	if s == nil {
		return -1, nil
	}
	marks := s.marks()
	for i := bytes.IndexByte(marks, mark); i >= 0; {
		if r := s.named(i, target); r != nil {
			return i, r
		}
		next := bytes.IndexByte(marks[i+1:], mark)
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return -1, nil
}

// named returns the record of entry i, if it belongs to this service.
func (s *shard) named(i int, target events.Target) record {
	from, to := s.bounds(i)
	entry := s.entries()[from:to]
	nameEnd := 1 + int(entry[0])
	service, rest := entry[1:nameEnd], record(entry[nameEnd:])
	if string(service) != target.Service.String() {
		return nil
	}
	app := s.texts()[rest.count():]
	if string(app[1:1+int(app[0])]) != target.App.String() {
		return nil
	}
	return rest
}

// app returns the place of an app's name. If the name isn't there yet, its place is at the end.
func (s *shard) app(id events.AppID) (place int, found bool) {
	texts := s.texts()
	for place < len(texts) {
		from := place + 1
		if place = from + int(texts[place]); string(texts[from:place]) == id.String() {
			return from - 1, true
		}
	}
	return place, false
}

// add returns the shard with one more service. grow makes its memory from the present one; it uses
// the same memory if no reader has it.
func (s *shard) add(mark byte, target events.Target, r record, grow func(have []byte, more int) []byte) shard {
	place, found := s.app(target.App)
	var app []byte
	if !found {
		app = appendText(make([]byte, 0, 1+len(target.App.String())), target.App.String())
	}
	var room [80]byte // a service's name has at most 63 bytes
	name := binary.AppendUvarint(appendText(room[:0], target.Service.String()), uint64(place))
	next := shard{services: s.services + 1, apps: s.apps + uint32(len(app))}
	next.block = grow(s.block, 1+endSize+len(app)+len(name)+len(r))
	// From the back to the front, so that nothing is overwritten before it is moved.
	entries := next.entries()
	n := copy(entries, s.entries())
	copy(entries[n+copy(entries[n:], name):], r)
	copy(next.texts()[copy(next.texts(), s.texts()):], app)
	ends := next.ends()
	binary.LittleEndian.PutUint32(ends[copy(ends, s.ends()):], uint32(len(entries)))
	next.marks()[copy(next.marks(), s.marks())] = mark
	return next
}

// with returns the shard with service i's record changed from have to next.
func (s *shard) with(i int, have, next record) *shard {
	_, end := s.bounds(i)
	to := len(s.block) - len(s.entries()) + int(end)
	out := &shard{slices.Concat(s.block[:to-len(have)], next, s.block[to:]), s.services, s.apps}
	// if it is less, the sums wrap around to the right values
	if more := uint32(len(next)) - uint32(len(have)); more != 0 {
		ends := out.ends()
		for ; i < int(s.services); i++ {
			binary.LittleEndian.PutUint32(ends[endSize*i:], binary.LittleEndian.Uint32(ends[endSize*i:])+more)
		}
	}
	return out
}

// appendText appends a text of at most 255 bytes.
func appendText(b []byte, text string) []byte { return append(append(b, byte(len(text))), text...) }
