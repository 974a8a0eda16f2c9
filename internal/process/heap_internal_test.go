package process

import (
	"runtime/debug"
	"testing"
)

// TestRelaxGC: the environment's GOGC stays as it is.
func TestRelaxGC(t *testing.T) {
	for _, tc := range []struct {
		env  string
		want int
	}{{"", relaxedGOGC}, {"50", 50}} {
		before := debug.SetGCPercent(50)
		t.Setenv("GOGC", tc.env)
		RelaxGC()
		if got := debug.SetGCPercent(before); got != tc.want {
			t.Errorf("GOGC=%s: %d %%, want %d", tc.env, got, tc.want)
		}
	}
}
