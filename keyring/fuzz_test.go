package keyring_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// FuzzJoin: whatever events a registry signs, also such as could never have been committed, the state is a function of their
// set: joins commute, associate, and do nothing twice.
func FuzzJoin(f *testing.F) {
	f.Add([]byte{0, 1, 2, 0, 1, 0, 2, 3, 1, 2, 5, 1, 3, 4, 9, 2}, 2, 3)
	f.Add([]byte{0, 0, 1, 0, 0, 0, 1, 0, 3, 1, 0, 0, 0, 0, 1, 1}, 1, 1)
	f.Fuzz(func(t *testing.T, program []byte, first, second int) {
		list := eventsOf(program)
		if len(list) > 12 || first < 0 || second < first || second > len(list) {
			return
		}
		a, b, c := fold(list[:first]), fold(list[first:second]), fold(list[second:])
		whole := keyring.Collect(list)
		for what, got := range map[string]keyring.Keyring{
			"one by one":     fold(list),
			"(a b) c":        a.Join(b).Join(c),
			"a (b c)":        a.Join(b.Join(c)),
			"(c b) a":        c.Join(b).Join(a),
			"(a a) (b (c a)": a.Join(a).Join(b.Join(c.Join(a))),
			"whole with it":  whole.Join(whole),
		} {
			if diff := cmp.Diff(whole, got, opts); diff != "" {
				t.Fatalf("%s of\n%v\nis another state:\n%s", what, list, diff)
			}
		}
		current, ok := whole.Current()
		for _, key := range whole.Keys {
			accepted := whole.At(key, 0) == keyring.Current
			if accepted && key.Position != whole.Head || ok && key == current && !accepted {
				t.Errorf("%v is current, and not of the newest event", key)
			}
			until := whole.Until(key)
			if until != keyring.NoEnd && whole.At(key, until) != keyring.Ended {
				t.Errorf("%v is accepted at its end", key)
			}
			if found, ok := whole.Find(key.PublicKey); !ok || found != key {
				t.Errorf("%v is found as %v", key, found)
			}
		}
		for _, now := range []int64{0, 3, 255, keyring.NoEnd} {
			if recent := whole.Recent(now, len(whole.Keys)); !slices.Equal(recent.Keys, whole.Keys) {
				t.Errorf("at %d there is left %v of %v", now, recent.Keys, whole.Keys)
			}
		}
	})
}

// eventsOf reads events of 4 bytes: kind and grace, order, time, keys. Few values of each make many collisions.
func eventsOf(program []byte) []events.Invalidation {
	kinds := []events.EventKind{events.ServiceBinding, events.KeyRotation, events.MasterReset, events.ServiceRevocation}
	var list []events.Invalidation
	for b := range slices.Chunk(program, 4) {
		if len(b) < 4 {
			break
		}
		e := events.Invalidation{Event: kinds[b[0]&3], Sequence: int64(b[1] & 15), Timestamp: int64(b[2])}
		e.GracePeriodExpiry = e.Timestamp
		if e.Event == events.KeyRotation {
			e.GracePeriodExpiry += int64(b[0] >> 2)
			e.EndEarlier = b[0]>>2 == 0 && b[3]&0x80 != 0
		}
		if e.Event != events.ServiceBinding {
			e.OldKey = key(int(b[3]&7) + 1)
		}
		if e.Event != events.ServiceRevocation {
			e.NewKey = key(int(b[3]>>3&7) + 1)
		}
		list = append(list, e)
	}
	return list
}
