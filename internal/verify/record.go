package verify

import (
	"crypto/ed25519"
	"encoding/binary"
	"math"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// record is what is known of one service, packed: its name, the head of its keyring and its sequence, its keys, its cutoffs.
// Numbers are varints, so a service with one key takes some 80 bytes; and there is no pointer, which the garbage collector
// would have to follow. The name of the app is left to another record of the same shard, where one has it.
type record []byte

// own stands in a record that has the name of its app itself. Else there is the place of the one that has it, from 1 on.
const own = 0

// room is where a record is unpacked to. It is enough for the keys that are kept of nearly every service, so that whoever
// reads needs no memory but its stack.
type room struct {
	keys    [endedKept + 2]keyring.Key
	cutoffs [4]keyring.Cutoff
}

// appendRecord packs what is known of a service, whose app is in the record at that place, or in its own.
func appendRecord(r record, app int, target events.Target, k *known) record {
	r = binary.AppendUvarint(r, uint64(app))
	if app == own {
		r = appendText(r, target.App.String())
	}
	r = appendText(r, target.Service.String())
	r = binary.AppendVarint(r, k.keyring.Head)
	r = binary.AppendVarint(r, k.sequence)
	r = binary.AppendUvarint(r, uint64(len(k.keyring.Keys)))
	for i := range k.keyring.Keys {
		key := &k.keyring.Keys[i]
		r = append(r, key.PublicKey.Bytes()...)
		r = binary.AppendVarint(r, key.Position)
		r = binary.AppendVarint(r, key.From)
		// No end is 0, and an end one more than it is. Before 1970, nobody asks.
		r = binary.AppendUvarint(r, (uint64(max(key.End, 0))+1)&math.MaxInt64)
	}
	r = binary.AppendUvarint(r, uint64(len(k.keyring.Cutoffs)))
	for _, c := range k.keyring.Cutoffs {
		r = binary.AppendVarint(r, c.Order)
		r = binary.AppendVarint(r, c.Time)
	}
	return r
}

func appendText(r record, text string) record {
	return append(binary.AppendUvarint(r, uint64(len(text))), text...)
}

// names returns the place of the record that has the app's name, that name where this is it, the service's name, and what
// comes behind them.
func (r record) names() (place int, app, service []byte, keys record) {
	if place = r.count(); place == own {
		app = r.text()
	}
	service = r.text()
	return place, app, service, r
}

// unpack reads what comes behind the names.
func (r record) unpack(into *room) (k known) {
	k.keyring = keyring.Keyring{Head: r.signed(), Keys: into.keys[:0], Cutoffs: into.cutoffs[:0]}
	k.sequence = r.signed()
	for range r.count() {
		key, _ := events.PublicKeyFromBytes(r[:ed25519.PublicKeySize]) // it has 32 bytes
		r = r[ed25519.PublicKeySize:]
		k.keyring.Keys = append(k.keyring.Keys, keyring.Key{
			PublicKey: key, Position: r.signed(), From: r.signed(), End: int64((uint64(r.count()) - 1) & math.MaxInt64),
		})
	}
	for range r.count() {
		k.keyring.Cutoffs = append(k.keyring.Cutoffs, keyring.Cutoff{Order: r.signed(), Time: r.signed()})
	}
	return k
}

// count takes a number off the front that has no sign.
func (r *record) count() int {
	if b := (*r)[0]; b < 0x80 { // nearly all
		*r = (*r)[1:]
		return int(b)
	}
	v, n := binary.Uvarint(*r)
	*r = (*r)[n:]
	return int(v)
}

// text takes a text off the front.
func (r *record) text() []byte {
	n := r.count()
	text := (*r)[:n]
	*r = (*r)[n:]
	return text
}

func (r *record) signed() int64 {
	v, n := binary.Varint(*r)
	*r = (*r)[n:]
	return v
}
