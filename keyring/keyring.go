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

// Key is what is known about one key.
type Key struct {
	PublicKey events.PublicKey
	// Position tells where the key stands among the keys of its service. If it is positive, it is
	// the order of the event that brought the key. If it is negative, that event has not been seen:
	// the key is known only as the old key of the event of order -Position, so it came before that
	// event.
	Position int64
	// From is the time at which the key became current, in seconds since the Unix epoch. It is 0 if
	// Position is negative.
	From int64
	// End is the earliest end that an event gave to this key by name, in seconds since the Unix
	// epoch, or [NoEnd]. A [Cutoff] may end the key earlier: [Keyring.Until] takes both into
	// account.
	End int64
}

// before returns an order that the key came at or before, and that no earlier cutoff reaches.
func (k Key) before() int64 {
	if k.Position < 0 {
		return -k.Position - 1
	}
	return k.Position
}

// Join merges what two sources know about the same key. The higher position wins: a source that saw
// the event that brought the key knows more than one that only saw the key replaced, and the
// earlier of two replacements says more than the later. If two events of one position bring the
// same key, they differ only because a registry has lost its memory; the earlier time counts.
func (k Key) Join(other Key) Key {
	if other.Position > k.Position || other.Position == k.Position && other.From < k.From {
		k.Position, k.From = other.Position, other.From
	}
	k.End = min(k.End, other.End)
	return k
}

// Cutoff comes from a MASTER_RESET, a SERVICE_REVOCATION, or a KEY_ROTATION with end_earlier. Every
// key that came before Order ends at Time or earlier.
type Cutoff struct {
	Order int64
	Time  int64 // in seconds since the Unix epoch
}

// Keyring holds the keys of one service that its known events tell of. The zero value knows
// nothing.
//
// A Keyring is immutable, except for [Keyring.Sort]. Join, Apply and Recent return a new one, which
// may share slices with the old one. Any number of goroutines may read it without a lock.
type Keyring struct {
	Head    int64 // the highest order of any event seen; 0: none
	Keys    []Key // sorted by Position, highest first
	Cutoffs []Cutoff
}

// Order returns an event's place among the events of its service. It is the sequence or, if the
// registry sends none, the timestamp (docs/protocol.md §7.2).
func Order(e *events.Invalidation) int64 {
	if e.Sequence > 0 {
		return e.Sequence
	}
	return e.Timestamp
}

// Of returns the keyring that one event makes.
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
		// The event brings no key, so a key of its own order ends too (timestamps can be equal).
		k.Cutoffs = []Cutoff{{Order: order + 1, Time: e.Timestamp}}
	case e.EndsEarlierKeys():
		k.Cutoffs = []Cutoff{{Order: order, Time: e.Timestamp}}
	}
	return k
}

// Collect returns the keyring that these events make together. The result is the same as applying
// them one after another, but the time doesn't grow with the square of their number.
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

// OfHistory returns the keyring that the registry's own account of a service makes
// (docs/protocol.md §8). Join it to fill a gap in the events.
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

// Apply returns the keyring with one more event.
func (k Keyring) Apply(e *events.Invalidation) Keyring { return k.Join(Of(e)) }

// Join returns the keyring that knows what either of the two knows.
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

// Sort brings Keys and Cutoffs into the order of a keyring, in place. Use it after you have put
// them together yourself, each of them once. Don't use it on a keyring from elsewhere, because
// other keyrings may share its slices. Joining as many keys one by one would take time that grows
// with the square of their number.
func (k *Keyring) Sort() {
	sortKeys(k.Keys)
	k.Cutoffs = sortCutoffs(k.Cutoffs)
}

// sortCutoffs sorts in place and drops repetitions.
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
// [NoEnd].
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
		// Two keys have one order only if a registry sends no sequence; the one that is not
		// replaced is current.
		if key.Position == k.Head && k.Until(key) == NoEnd {
			return key, true
		}
	}
	return Key{}, false
}

// State says how far a key is accepted at some time.
type State int

// The states of a key.
const (
	Unknown  State = iota // not a key of this service
	Current               // signs and authorizes changes
	InGrace               // still accepted until its end
	Ended                 // was a key of this service
	Replaced              // no longer current, but the event that ends its grace period is missing
)

// At returns the state of one of the keyring's keys at time t, in seconds since the Unix epoch.
// Accept a signature only if the state is [Current] or [InGrace] (docs/protocol.md §7.2).
func (k Keyring) At(key Key, t int64) State {
	switch until := k.Until(key); {
	case t >= until && until != NoEnd:
		return Ended
	case key.End != NoEnd:
		return InGrace
	case until == NoEnd && key.Position == k.Head:
		return Current
	default: // a future cutoff only bounds the end
		return Replaced
	}
}

// Find returns what is known about a key.
func (k Keyring) Find(key events.PublicKey) (Key, bool) {
	if i := k.index(key); i >= 0 {
		return k.Keys[i], true
	}
	return Key{}, false
}

// Recent returns a keyring that takes bounded memory and can still tell which keys are accepted
// from t on. It leaves out the keys that ended before t, except for the newest ones, of which it
// keeps as many as ended says. A key that is left out is never accepted again: only the event that
// ended it could have given it a later end, and if the event that brought it arrives late, the key
// is [Replaced]. Of the cutoffs before t, Recent keeps one, which ends every key that they end. If
// it leaves nothing out, it returns the slices of k.
func (k Keyring) Recent(t int64, ended int) Keyring {
	k.Cutoffs = recentCutoffs(k.Cutoffs, t)
	isOut := func(key Key) bool {
		if k.At(key, t) == Ended {
			ended--
			return ended < 0
		}
		return false
	}
	if first := slices.IndexFunc(k.Keys, isOut); first >= 0 { // otherwise they stay where they are
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

// recentCutoffs joins the cutoffs that are past into one with the highest order and the earliest
// time, so that no clock that is set back revives a key.
func recentCutoffs(cutoffs []Cutoff, t int64) []Cutoff {
	isPast := func(c Cutoff) bool { return c.Time <= t }
	first := slices.IndexFunc(cutoffs, isPast)
	if first < 0 || !slices.ContainsFunc(cutoffs[first+1:], isPast) {
		return cutoffs // nearly always
	}
	past := cutoffs[first] // the first has the highest order
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
