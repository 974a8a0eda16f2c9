package verify

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/keyring"
)

// TestKeyringsHoldWhatTheyWereGiven: for services of several apps, with few enough shards that each
// has many, and for any keyrings, loaded or brought by events, find returns what package keyring
// makes of them.
func TestKeyringsHoldWhatTheyWereGiven(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		k, want := newKeyrings(2), make(map[events.Target]known)
		targets := rapid.Custom(func(rt *rapid.T) events.Target {
			name := rapid.SampledFrom([]string{"a.b", "a.bb", "a.b.c", "org.omiappreg.alice"}).Draw(rt, "app") + "." +
				rapid.SampledFrom([]string{"c", "d", "bb", "a-very-long-name-of-a-service-with-60-bytes-0123456789abcdef"}).Draw(rt, "service")
			return must(events.ParseTarget(name))
		})
		const now = 1000
		for _, target := range rapid.SliceOfNDistinct(targets, 0, 16, rapid.ID).Draw(rt, "loaded") {
			have := known{drawKeyring(rt), rapid.Int64Min(0).Draw(rt, "sequence")}
			k.load(target, have, now)
			want[target] = known{have.keyring.Recent(now, endedKept), have.sequence}
		}
		for range rapid.IntRange(0, 30).Draw(rt, "events") {
			e := events.Invalidation{
				Target: targets.Draw(rt, "target"), Event: rapid.SampledFrom([]events.EventKind{events.KeyRotation, events.MasterReset}).Draw(rt, "event"),
				OldKey: drawKey(rt), NewKey: drawKey(rt), Sequence: rapid.Int64Range(0, 1<<40).Draw(rt, "sequence"),
				Timestamp: rapid.Int64Range(0, 2*now).Draw(rt, "time"), GracePeriodExpiry: rapid.Int64Range(0, 2*now).Draw(rt, "expiry"),
			}
			if have := want[e.Target].keyring; len(have.Keys) > 0 && rapid.Bool().Draw(rt, "follows") { // as events mostly do
				e.Event, e.OldKey = events.KeyRotation, have.Keys[0].PublicKey
				e.Sequence = have.Head&(1<<40) + rapid.Int64Range(0, 2).Draw(rt, "further")
			}
			k.apply(&e, now)
			want[e.Target] = want[e.Target].apply(&e, now)
		}
		for target, want := range want {
			var room room
			r := k.find(target)
			got, found := r.unpack(&room), r != nil
			if !found || got.sequence != want.sequence || got.keyring.Head != want.keyring.Head ||
				!slices.Equal(got.keyring.Keys, want.keyring.Keys) || !slices.Equal(got.keyring.Cutoffs, want.keyring.Cutoffs) {
				rt.Fatalf("%s: %t, got %+v, want %+v", target, found, got, want)
			}
		}
		for target, want := range want {
			answer, ok := k.find(target).accepted()
			first := len(want.keyring.Keys) > 0 && want.keyring.At(want.keyring.Keys[0], now) == keyring.Current
			if ok != first || ok && answer != want.accepted(&want.keyring.Keys[0]) {
				rt.Fatalf("%s: %+v is accepted: %t, %+v", target, want, ok, answer)
			}
		}
		for range 5 {
			target := targets.Draw(rt, "other")
			if _, known := want[target]; !known && k.find(target) != nil {
				rt.Fatalf("%s is found", target)
			}
		}
	})
}

func drawKey(rt *rapid.T) events.PublicKey {
	return must(events.PublicKeyFromBytes(bytes.Repeat([]byte{rapid.Byte().Draw(rt, "key")}, 32)))
}

func drawKeyring(rt *rapid.T) (k keyring.Keyring) {
	k.Head = rapid.Int64().Draw(rt, "head")
	for range rapid.IntRange(0, 15).Draw(rt, "keys") {
		k = k.Join(keyring.Keyring{Keys: []keyring.Key{{
			PublicKey: drawKey(rt), Position: rapid.Int64Range(-math.MaxInt64, math.MaxInt64).Draw(rt, "position"),
			From: rapid.Int64().Draw(rt, "from"),
			End:  rapid.OneOf(rapid.Just(keyring.NoEnd), rapid.Just(int64(0)), rapid.Int64Min(0)).Draw(rt, "end"),
		}}})
	}
	for range rapid.IntRange(0, 6).Draw(rt, "cutoffs") {
		k = k.Join(keyring.Keyring{Cutoffs: []keyring.Cutoff{{Order: rapid.Int64().Draw(rt, "order"), Time: rapid.Int64().Draw(rt, "cut")}}})
	}
	return k
}

// TestKeyringsReadWhileWritten is for the race detector: enough services that many share a shard,
// read all the time while others are added and changed.
func TestKeyringsReadWhileWritten(t *testing.T) {
	t.Parallel()
	k, key := newKeyrings(1024), events.GenerateSigningKey()
	services := make([]*subtest.Service, 4096)
	for i := range services {
		services[i] = subtest.NewService(t, fmt.Sprint("s", i))
		services[i].BindWith(1, key)
		services[i].RotateTo(2, 300, key)
	}
	k.load(services[0].Target, known{services[0].Keyring(), 2}, 2)
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				var room room
				if have := k.find(services[i%len(services)].Target).unpack(&room); have.sequence != have.keyring.Head {
					t.Error("a state that no event made")
				}
			}
		})
	}
	for _, s := range services {
		k.apply(&s.Events[0], 2)
	}
	for _, s := range services {
		k.apply(&s.Events[1], 2)
	}
	stop()
	readers.Wait()
	for _, s := range services {
		var room room
		if have := k.find(s.Target).unpack(&room); have.sequence != 2 {
			t.Fatalf("%s: %+v", s.Target, have)
		}
	}
}
