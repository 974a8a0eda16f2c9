package process

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/internal/testenv"
)

func TestPercentFor(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, tc := range []struct {
		live      uint64
		processes int
		want      int
	}{
		{0, 1, 1000}, {mib, 1, 1000}, {20 * mib, 1, 1000}, {32 * mib, 1, 700}, {64 * mib, 1, 300}, {90 * mib, 1, 175}, {128 * mib, 1, 100},
		{200 * mib, 1, 100}, {300 * mib, 1, 100}, {100 << 30, 1, 100},
		{mib, 3, 1000}, {128 * mib, 3, 700}, {512 * mib, 3, 250}, {2 << 30, 3, 125}, {100 << 30, 3, 100},
	} {
		if got := percentFor(tc.live, tc.processes); got != tc.want {
			t.Errorf("%d MiB of %d processes: %d %%, want %d", tc.live/mib, tc.processes, got, tc.want)
		}
	}
}

type severalCmd struct{}

func (*severalCmd) Processes() int { return 3 }
func (*severalCmd) Run() error     { return nil }

// TestProcessesIn: a command may stand for several processes.
func TestProcessesIn(t *testing.T) {
	t.Parallel()
	parser, err := kong.New(&struct {
		Several severalCmd `cmd:""`
		One     struct{}   `cmd:""`
	}{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"several": 3, "one": 1} {
		command, err := parser.Parse([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		if got := processesIn(command); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

// TestPacer: each collection is followed by a look at what it left.
func TestPacer(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(usualPercent)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	paceCollections(1)
	if got := percent(); got != largestPercent {
		t.Errorf("%d %% of a small heap", got)
	}
	large := make([]byte, freeHeap)
	testenv.Eventually(t, time.Minute, "a large heap is collected as usual", func() error {
		runtime.GC()
		return expect(usualPercent)
	})
	runtime.KeepAlive(large)
	testenv.Eventually(t, time.Minute, "a heap that is small again may grow", func() error {
		runtime.GC()
		return expect(largestPercent)
	})
}

func percent() int {
	now := debug.SetGCPercent(usualPercent)
	debug.SetGCPercent(now)
	return now
}

func expect(want int) error {
	if got := percent(); got != want {
		return fmt.Errorf("%d %%, want %d", got, want)
	}
	return nil
}
