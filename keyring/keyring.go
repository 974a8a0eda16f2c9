// Package keyring is the keys of one service over time: what a subscriber knows once it has seen
// some of the service's events, in any order, each any number of times (docs/protocol.md §7.2). It
// does no I/O.
//
// A [Keyring] is a join-semilattice. Each event is itself a small keyring ([Of]), and
// [Keyring.Join] merges two in a way that is commutative, associative and idempotent. So the state
// of a subscriber is a function of the set of events that it has seen, and of nothing else: no
// order, no repetition and no restart can change it.
//
// A key's life, as the events tell it:
//
//	        event brings it           KEY_ROTATION replaces it        its grace period expires
//	unknown ──────────────▶ current ─────────────────────────▶ grace ─────────────────────────▶ ended
//	                           │                                 │                                ▲
//	                           └── MASTER_RESET, SERVICE_REVOCATION of a higher sequence: at once ┘
//
// A KEY_ROTATION with end_earlier ends earlier keys as a MASTER_RESET does.
package keyring

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"omiappreg.org/keyrotation/events"
)

// NoEnd is the end of a key that no event has ended.
const NoEnd int64 = math.MaxInt64

// Key is what is known of one key.
type Key struct {
	PublicKey events.PublicKey
	// Position is the order of the event that brought the key, if it is positive. If it is
	// negative, that event was not seen: the key is known only as the old key of the event of order
	// -Position, so it came before that event.
	Position int64
	// From is when the key became current, in seconds since the Unix epoch; 0 if Position is
	// negative.
	From int64
	// End is the earliest end that an event gave to this key by name, in seconds since the Unix
	// epoch, or NoEnd. A [Cutoff] may end it earlier: ask [Keyring.Until].
	End int64
}

// before returns an order that the key came at or before for certain, and that no earlier cutoff
// reaches.
func (k Key) before() int64 {
	if k.Position < 0 {
		return -k.Position - 1
	}
	return k.Position
}

// Join merges what two sources know of the same key. The higher position wins: having seen the
// event that brought the key says more than having seen only that it was replaced, and of two
// replacements the earlier says more. Two events of one position that bring the same key differ
// only if a registry has lost its memory: the earlier time counts.
func (k Key) Join(other Key) Key {
	if other.Position > k.Position || other.Position == k.Position && other.From < k.From {
		k.Position, k.From = other.Position, other.From
	}
	k.End = min(k.End, other.End)
	return k
}

// Cutoff is a MASTER_RESET, a SERVICE_REVOCATION or a KEY_ROTATION with end_earlier: every key that
// came before Order ends at Time at the latest.
type Cutoff struct {
	Order int64
	Time  int64 // seconds since the Unix epoch
}

// Keyring is the keys of one service, to the extent that its events are known. It is immutable:
// Join, Apply and Recent return another one, which may share its slices, so readers need no lock.
// The zero value knows nothing.
type Keyring struct {
	Head    int64 // the highest order of any event seen; 0: none
	Keys    []Key // by Position, highest first
	Cutoffs []Cutoff
}

// Order returns the place of an event among its service's: its sequence or, if the registry sends
// none, its timestamp (§7.2).
func Order(e *events.Invalidation) int64 {
	if e.Sequence > 0 {
		return e.Sequence
	}
	return e.Timestamp
}

// Of returns the keyring after this one event.
func Of(e *events.Invalidation) Keyring {
	order := Order(e)
	k := Keyring{Head: order}
	if !e.NewKey.IsZero() {
		k.Keys = append(k.Keys, Key{PublicKey: e.NewKey, Position: order, From: e.Timestamp, End: NoEnd})
	}
	if !e.OldKey.IsZero() {
		k.Keys = append(k.Keys, Key{PublicKey: e.OldKey, Position: -order, End: e.GracePeriodExpiry})
	}
	switch {
	case e.Event == events.ServiceRevocation:
		// It brings no key, so what it ends includes a key of its own order (a tie of timestamps).
		k.Cutoffs = []Cutoff{{Order: order + 1, Time: e.Timestamp}}
	case e.EndsEarlierKeys():
		k.Cutoffs = []Cutoff{{Order: order, Time: e.Timestamp}}
	}
	return k
}

// Collect returns the keyring after these events. The result is the same as applying one after the
// other, in time that does not grow with the square of their number.
func Collect(list []events.Invalidation) Keyring {
	var k Keyring
	keys := make(map[events.PublicKey]Key, len(list))
	for i := range list {
		one := Of(&list[i])
		k.Head = max(k.Head, one.Head)
		k.Cutoffs = append(k.Cutoffs, one.Cutoffs...)
		for _, key := range one.Keys {
			if have, ok := keys[key.PublicKey]; ok {
				key = have.Join(key)
			}
			keys[key.PublicKey] = key
		}
	}
	k.Keys = slices.Collect(maps.Values(keys))
	sortKeys(k.Keys)
	k.Cutoffs = sortCutoffs(k.Cutoffs)
	return k
}

// OfHistory returns the keyring of the registry's own account of a service (§8): it fills a gap in
// the events.
func OfHistory(h *events.ServiceHistory) Keyring {
	k := Keyring{Head: h.Sequence}
	for _, key := range h.Keys {
		end := NoEnd
		if key.Until != nil {
			end = *key.Until
		}
		k.Keys = append(k.Keys, Key{PublicKey: key.PublicKey, Position: key.Sequence, From: key.From, End: end})
	}
	sortKeys(k.Keys)
	return k
}

// Apply returns the keyring after this event too.
func (k Keyring) Apply(e *events.Invalidation) Keyring { return k.Join(Of(e)) }

// Join returns the keyring after all events that either has seen.
func (k Keyring) Join(other Keyring) Keyring {
	joined := Keyring{
		Head:    max(k.Head, other.Head),
		Keys:    make([]Key, len(k.Keys), len(k.Keys)+len(other.Keys)),
		Cutoffs: k.Cutoffs,
	}
	copy(joined.Keys, k.Keys)
	for _, key := range other.Keys {
		if i := joined.index(key.PublicKey); i >= 0 {
			joined.Keys[i] = joined.Keys[i].Join(key)
		} else {
			joined.Keys = append(joined.Keys, key)
		}
	}
	sortKeys(joined.Keys)
	if len(other.Cutoffs) > 0 {
		joined.Cutoffs = sortCutoffs(slices.Concat(k.Cutoffs, other.Cutoffs))
	}
	return joined
}

// Sort puts keys and cutoffs, each of which is there once, into the order of a keyring, in place.
// It is for a keyring that its caller has just put together: another keyring may share the slices
// of one that came from elsewhere. Joining as many one by one takes time that grows with the square
// of their number.
func (k *Keyring) Sort() {
	sortKeys(k.Keys)
	k.Cutoffs = sortCutoffs(k.Cutoffs)
}

// sortCutoffs sorts in place, and drops duplicates.
func sortCutoffs(cutoffs []Cutoff) []Cutoff {
	slices.SortFunc(cutoffs, func(a, b Cutoff) int {
		return cmp.Or(cmp.Compare(b.Order, a.Order), cmp.Compare(a.Time, b.Time))
	})
	return slices.Compact(cutoffs)
}

func sortKeys(keys []Key) {
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(b.before(), a.before()), slices.Compare(a.PublicKey.Bytes(), b.PublicKey.Bytes()))
	})
}

func (k Keyring) index(key events.PublicKey) int {
	return slices.IndexFunc(k.Keys, func(have Key) bool { return have.PublicKey == key })
}

// Until returns the end of one of the keyring's keys: the earliest that any event gives it, or
// NoEnd.
func (k Keyring) Until(key Key) int64 {
	until := key.End
	for _, c := range k.Cutoffs {
		if c.Order > key.before() {
			until = min(until, c.Time)
		}
	}
	return until
}

// Current returns the key that the highest event brought. There is none if that event revoked the
// service.
func (k Keyring) Current() (Key, bool) {
	for _, key := range k.Keys {
		// Two keys of one order are possible only if the registry sends no sequence; the one that
		// was not replaced is current.
		if key.Position == k.Head && k.Until(key) == NoEnd {
			return key, true
		}
	}
	return Key{}, false
}

// State is what a key may be used for at some time.
type State int

// The states of a key.
const (
	Unknown  State = iota // not a key of this service
	Current               // signs and authorises changes
	InGrace               // still accepted, until its end
	Ended                 // was a key of this service
	Replaced              // no longer current; until when it is in grace is not known yet
)

// At returns the state of one of the keyring's keys at time t, in seconds since the Unix epoch.
// Only Current and InGrace are accepted (§7.2).
func (k Keyring) At(key Key, t int64) State {
	switch until := k.Until(key); {
	case t >= until && until != NoEnd:
		return Ended
	case key.End != NoEnd:
		return InGrace
	case until == NoEnd && key.Position == k.Head:
		return Current
	default: // a cutoff that is still to come says only until when at most
		return Replaced
	}
}

// Find returns what is known of a key.
func (k Keyring) Find(key events.PublicKey) (Key, bool) {
	if i := k.index(key); i >= 0 {
		return k.Keys[i], true
	}
	return Key{}, false
}

// Recent returns enough to answer "who may pass now?" from t on, in bounded memory: a keyring
// without the keys that ended before t, except for the newest `ended` of them. A key that is left
// out is never accepted again: only the event that ended it could have given it a later end, and if
// the event that brought it comes late, the key is [Replaced]. Of the cutoffs before t one is left,
// which ends every key that they end. If nothing is left out, the result has the slices of k.
func (k Keyring) Recent(t int64, ended int) Keyring {
	k.Cutoffs = recentCutoffs(k.Cutoffs, t)
	isOut := func(key Key) bool {
		if k.At(key, t) == Ended {
			ended--
			return ended < 0
		}
		return false
	}
	// Otherwise they stay as and where they are.
	if first := slices.IndexFunc(k.Keys, isOut); first >= 0 {
		kept := append(make([]Key, 0, len(k.Keys)-1), k.Keys[:first]...)
		for _, key := range k.Keys[first+1:] {
			if !isOut(key) {
				kept = append(kept, key)
			}
		}
		k.Keys = kept
	}
	return k
}

// recentCutoffs joins the cutoffs that are past: to the highest order, and to the earliest time, so
// that no clock that is set back revives a key.
func recentCutoffs(cutoffs []Cutoff, t int64) []Cutoff {
	isPast := func(c Cutoff) bool { return c.Time <= t }
	first := slices.IndexFunc(cutoffs, isPast)
	if first < 0 || !slices.ContainsFunc(cutoffs[first+1:], isPast) {
		return cutoffs // nearly always
	}
	past := cutoffs[first] // it has the highest order
	kept := slices.Clone(cutoffs[:first+1])
	for _, c := range cutoffs[first+1:] {
		if isPast(c) {
			past.Time = min(past.Time, c.Time)
		} else {
			kept = append(kept, c)
		}
	}
	kept[first] = past
	return sortCutoffs(kept)
}
