package bench_test

import (
	"sync/atomic"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/bench"
)

// played is a load and the events of a registry that served it.
func played(t *testing.T, services, rotations int) (*bench.Load, []events.Invalidation) {
	t.Helper()
	load := bench.NewLoad(services, 0, rotations)
	requests, err := load.Sign(t.Context(), func(int) time.Time { return time.Now() }, &atomic.Int64{})
	if err != nil {
		t.Fatal(err)
	}
	var list []events.Invalidation
	sequences := map[events.Target]int64{}
	for _, r := range requests {
		parsed, err := events.ParseRequest(r.Subject, r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		sequences[parsed.Target]++
		list = append(list, events.Invalidation{
			Target: parsed.Target, Event: events.KeyRotation, NewKey: parsed.NewKey, Nonce: events.NewNonce(), Sequence: 1 + sequences[parsed.Target],
		})
	}
	return load, list
}

func TestRecorder(t *testing.T) {
	t.Parallel()
	const rotations = 7
	again := func(list []events.Invalidation) []events.Invalidation { return append(list, list[2]) }
	other := func(change func(*events.Invalidation)) func([]events.Invalidation) []events.Invalidation {
		return func(list []events.Invalidation) []events.Invalidation {
			e := list[2]
			change(&e)
			return append(list[:len(list):len(list)], e)
		}
	}
	for name, test := range map[string]struct {
		billing       func([]events.Invalidation) []events.Invalidation
		lost, doubled int
	}{
		"everything once":                {},
		"one delivered again":            {billing: again},
		"one not applied":                {billing: func(list []events.Invalidation) []events.Invalidation { return list[1:] }, lost: 1},
		"one rotation with two events":   {billing: other(func(e *events.Invalidation) { e.Nonce = events.NewNonce() }), doubled: 1},
		"a rotation nobody asked for":    {billing: other(func(e *events.Invalidation) { e.Sequence += 100 }), doubled: 1},
		"a key that nobody asked for":    {billing: other(func(e *events.Invalidation) { e.NewKey = events.GenerateSigningKey().Public() }), doubled: 1},
		"another service's, not its own": {billing: other(func(e *events.Invalidation) { e.Target = events.Target{} }), doubled: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			load, list := played(t, 3, rotations)
			r := bench.NewRecorder(load, 0)
			began := time.Now()
			r.Begin(began)
			r.Committed(list)
			r.Auth(list)
			if test.billing != nil {
				list = test.billing(list)
			}
			r.Billing(list)
			if lost, doubled := r.Lost(), r.Doubled(); lost != test.lost || doubled != test.doubled {
				t.Errorf("lost %d, doubled %d", lost, doubled)
			}
			if n := len(r.Samples(began)); n != rotations-test.lost {
				t.Errorf("%d samples", n)
			}
			select {
			case <-r.Done():
				if test.lost > 0 {
					t.Error("done, although one is lost")
				}
			default:
				if test.lost == 0 {
					t.Error("not done")
				}
			}
		})
	}
}

func TestRecorderCountsWhatIsNotCommittedAsLost(t *testing.T) {
	t.Parallel()
	load, list := played(t, 2, 4)
	r := bench.NewRecorder(load, 0)
	r.Committed(list[:3])
	r.Auth(list)
	r.Billing(list)
	if lost := r.Lost(); lost != 1 {
		t.Errorf("lost %d", lost)
	}
}

// In an open loop, a latency counts from when the request was due, however late it was published.
func TestLatencyCountsFromTheIntendedTime(t *testing.T) {
	t.Parallel()
	load, list := played(t, 1, 1)
	r := bench.NewRecorder(load, 0)
	began := time.Now()
	r.Begin(began)
	r.Published(0, began.Add(-time.Hour))
	r.Auth(list)
	r.Billing(list)
	if samples := r.Samples(began); len(samples) != 1 || samples[0].Latency < time.Hour || samples[0].Applied > time.Hour {
		t.Errorf("%v", samples)
	}
}

func TestClosedLoopReleasesWhatBothHaveApplied(t *testing.T) {
	t.Parallel()
	load, list := played(t, 2, 6)
	r := bench.NewRecorder(load, 2)
	free := func() (n int) {
		for {
			select {
			case <-r.Released():
				n++
			default:
				return n
			}
		}
	}
	if n := free(); n != 2 {
		t.Fatalf("%d may be on their way at first", n)
	}
	r.Auth(list[:2])
	if n := free(); n != 0 {
		t.Errorf("%d were released by one subscriber alone", n)
	}
	r.Billing(list[:1])
	if n := free(); n != 1 {
		t.Errorf("%d were released", n)
	}
}
