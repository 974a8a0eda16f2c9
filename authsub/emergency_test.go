package authsub_test

import (
	"testing"

	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestEmergency: a key that was stolen, and is in grace, ends by an emergency rotation with end_earlier, in whichever order the
// events come, and after a restart. Without it, it stays.
func TestEmergency(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.clock.seconds.Store(start + 20)
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {2, 1, 0}, {1, 2, 0, 2, 1}}
	services := make([]*subtest.Service, len(orders))
	for i, order := range orders {
		s := subtest.NewService(t, "emergency"+string(rune('a'+i)))
		s.Bind(start)
		s.Rotate(start+10, 300)
		s.EndEarlier(start + 20)
		for _, k := range order {
			w.registry.Publish(t, w.js, s.Events[k])
		}
		services[i] = s
	}
	mild := subtest.NewService(t, "mild")
	mild.Bind(start)
	mild.Rotate(start+10, 300)
	mild.Rotate(start+20, 0)
	w.registry.Publish(t, w.js, mild.Events...)
	for range 2 {
		w.current(t, mild)
		w.want(t, "a stolen key in grace, after a rotation with a grace period of 0", mild, mild.Keys[0], "accepted grace")
		for _, s := range services {
			w.current(t, s)
			w.want(t, "a stolen key in grace", s, s.Keys[0], "refused expired_key")
			w.want(t, "the key that was current", s, s.Keys[1], "refused expired_key")
		}
		w.stop()
		w.run(t)
	}
}
