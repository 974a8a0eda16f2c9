package verify

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"math"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// record is the packed state of one service: flags, the head of its keyring, its sequence unless
// that is the head, the number of its cutoffs and the cutoffs, and then its keys. Numbers are
// varints, so a key takes some 40 bytes. Nil means that the service is unknown.
type record []byte

// Flags of a record.
const (
	hasCurrent = 1 << iota // the first key is current, whatever the time
	headIsLast             // the sequence is the head
)

// room is the memory into which a record is unpacked. It is large enough for the kept keys of
// nearly every service, so that a reader needs only its stack.
type room struct {
	keys    [endedKept + 2]keyring.Key
	cutoffs [4]keyring.Cutoff
}

// appendRecord packs the state of a service.
func appendRecord(r record, k *known) record {
	current, ok := k.keyring.Current()
	r = appendHead(r, ok && current == k.keyring.Keys[0], k.keyring.Head, k.sequence, k.keyring.Cutoffs)
	for i := range k.keyring.Keys {
		r = appendKey(r, &k.keyring.Keys[i])
	}
	return r
}

// appendHead packs everything before the keys.
func appendHead(r record, current bool, head, sequence int64, cutoffs []keyring.Cutoff) record {
	flags := byte(0)
	if current {
		flags = hasCurrent
	}
	if sequence == head {
		r = binary.AppendVarint(append(r, flags|headIsLast), head)
	} else {
		r = binary.AppendVarint(binary.AppendVarint(append(r, flags), head), sequence)
	}
	r = binary.AppendUvarint(r, uint64(len(cutoffs)))
	for _, c := range cutoffs {
		r = binary.AppendVarint(binary.AppendVarint(r, c.Order), c.Time)
	}
	return r
}

func appendKey(r record, key *keyring.Key) record {
	r = append(r, key.PublicKey.Bytes()...)
	r = binary.AppendVarint(binary.AppendVarint(r, key.Position), key.From)
	// 0 means no end, and other ends are stored plus one. Ends before 1970 don't occur.
	return binary.AppendUvarint(r, (uint64(max(key.End, 0))+1)&math.MaxInt64)
}

// head removes from the front what appendHead put there. It puts the cutoffs into the room.
func (r *record) head(into *room) (current bool, k known) {
	flags := (*r)[0]
	*r = (*r)[1:]
	k.keyring.Head = r.signed()
	k.sequence = k.keyring.Head
	if flags&headIsLast == 0 {
		k.sequence = r.signed()
	}
	k.keyring.Cutoffs = into.cutoffs[:0]
	for range r.count() {
		k.keyring.Cutoffs = append(k.keyring.Cutoffs, keyring.Cutoff{Order: r.signed(), Time: r.signed()})
	}
	return flags&hasCurrent != 0, k
}

// key removes a key from the front.
func (r *record) key() keyring.Key {
	public, _ := events.PublicKeyFromBytes((*r)[:ed25519.PublicKeySize]) // it has 32 bytes
	*r = (*r)[ed25519.PublicKeySize:]
	return keyring.Key{PublicKey: public, Position: r.signed(), From: r.signed(), End: int64((r.count() - 1) & math.MaxInt64)}
}

// unpack returns the state of the service.
func (r record) unpack(into *room) known {
	if r == nil {
		return known{}
	}
	_, k := r.head(into)
	k.keyring.Keys = into.keys[:0]
	for len(r) > 0 {
		k.keyring.Keys = append(k.keyring.Keys, r.key())
	}
	return k
}

// accepted returns the answer for a signature by the current key, whatever the time. Nearly every
// signature is by that key. If ok is false, there may be no current key, but a key may be accepted
// all the same.
func (r record) accepted() (answer events.VerifyAnswer, ok bool) {
	if r == nil || r[0]&hasCurrent == 0 {
		return answer, false
	}
	answer.Result, answer.Key = events.Accepted, events.KeyCurrent
	last := r[0]&headIsLast != 0
	r = r[1:]
	if head := r.signed(); last {
		answer.Sequence = head // otherwise the head is a timestamp, not a sequence
	} else {
		r.signed()
	}
	for range 2 * r.count() { // orders and times
		r.signed()
	}
	answer.PublicKey, _ = events.PublicKeyFromBytes(r[:ed25519.PublicKeySize])
	return answer, true
}

// follow appends the record that results from an event which follows on it: a rotation from the
// current key to one that the record doesn't have. Nearly every event is such a rotation. It
// changes two keys, so follow unpacks and moves no other key. If ok is false, it is another event,
// or one after which cutoffs may be forgotten.
func (r record) follow(into record, e *events.Invalidation, now int64) (next record, ok bool) {
	if r == nil || e.Event != events.KeyRotation || e.EndEarlier || e.OldKey.IsZero() || e.NewKey.IsZero() || e.NewKey == e.OldKey {
		return into, false
	}
	var room room
	current, k := r.head(&room)
	order := keyring.Order(e)
	if !current || len(k.keyring.Cutoffs) > 1 || k.keyring.Head <= 0 || order <= k.keyring.Head ||
		!bytes.Equal(r[:ed25519.PublicKeySize], e.OldKey.Bytes()) {
		return into, false
	}
	k.keyring.Head, k.sequence = order, max(k.sequence, e.Sequence)
	next = appendHead(into, true, order, k.sequence, k.keyring.Cutoffs)
	next = appendKey(next, &keyring.Key{PublicKey: e.NewKey, Position: order, From: e.Timestamp, End: keyring.NoEnd})
	old := r.key()
	old.End = e.GracePeriodExpiry
	ended := 0
	keep := func(key keyring.Key) bool { // as [keyring.Keyring.Recent] does
		if k.keyring.At(key, now) == keyring.Ended {
			ended++
			return ended <= endedKept
		}
		return true
	}
	if keep(old) {
		next = appendKey(next, &old)
	}
	for len(r) > 0 {
		from := r
		key := r.key()
		if key.PublicKey == e.NewKey {
			return into, false
		}
		if keep(key) {
			next = append(next, from[:len(from)-len(r)]...)
		}
	}
	return next, true
}

// count removes an unsigned number from the front. It may be a time, for which an int is too short
// on 32-bit machines.
func (r *record) count() uint64 {
	if b := (*r)[0]; b < 0x80 { // nearly all
		*r = (*r)[1:]
		return uint64(b)
	}
	v, n := binary.Uvarint(*r)
	*r = (*r)[n:]
	return v
}

// signed removes a signed number from the front.
func (r *record) signed() int64 {
	if b := (*r)[0]; b < 0x80 {
		*r = (*r)[1:]
		return int64(b>>1) ^ -int64(b&1)
	}
	v, n := binary.Varint(*r)
	*r = (*r)[n:]
	return v
}
