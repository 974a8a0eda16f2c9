package testenv

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	faultsEnv    = "OMI_TEST_FAULTS" // "all", or the number of a step
	faultSlots   = 16                // runs at a time; most of them wait
	faultSample  = 32                // runs of a test, unless OMI_TEST_FAULTS says otherwise
	shortSample  = 8                 // the same in the short form
	faultTimeout = 2 * time.Minute   // of a run; JetStream forgets ids by then
)

// EveryStep takes a program through the same history again and again. Each time one of its I/O
// steps fails, in each of the ways of [Fault]. The first run is without a fault, and shows how many
// steps there are. The steps in must have to be among them.
//
// open makes a place to run in, such as an empty database. The function that it returns runs the
// history once, in its own goroutine, and returns an error if the end is not as it should be. It is
// called many times.
//
// By default EveryStep takes a sample, which differs each time. OMI_TEST_FAULTS=all takes every
// step, and OMI_TEST_FAULTS=17 only step 17.
func EveryStep(t *testing.T, must []string, open func(t *testing.T) func(context.Context, *Faults) error) {
	t.Helper()
	places := []func(context.Context, *Faults) error{open(t)}
	dry := NewFaults(Fault{})
	if err := places[0](t.Context(), dry); err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	steps := dry.Steps()
	for _, step := range must {
		if !slices.Contains(steps, step) {
			t.Errorf("no step is %q; there are %s", step, tally(steps))
		}
	}
	chosen := chooseFaults(t, steps)
	for len(places) < min(faultSlots, len(chosen)) {
		places = append(places, open(t))
	}
	faults := make(chan Fault)
	var mu sync.Mutex
	var struck []string
	var running sync.WaitGroup
	for _, run := range places {
		running.Go(func() {
			for fault := range faults {
				f := NewFaults(fault)
				ctx, cancel := context.WithTimeout(t.Context(), faultTimeout)
				err := run(ctx, f)
				cancel()
				if err != nil {
					t.Errorf("%s (%s): %v\n%s", fault, cmp.Or(f.Struck(), "which did not come"), err, f.log.String())
				}
				mu.Lock()
				struck = append(struck, cmp.Or(f.Struck(), "none"))
				mu.Unlock()
			}
		})
	}
	for _, fault := range chosen {
		faults <- fault
	}
	close(faults)
	running.Wait()
	t.Logf("%d steps; what the faults struck: %s", len(steps), tally(struck))
}

// chooseFaults returns the faults to try of a history with these steps.
func chooseFaults(t *testing.T, steps []string) []Fault {
	t.Helper()
	kinds, total := map[string][]Fault{}, 0
	only := os.Getenv(faultsEnv)
	for i, kind := range steps {
		step := i + 1
		if only != "" && only != "all" && only != strconv.Itoa(step) {
			continue
		}
		// Dying before a step is the same as dying after the step before it.
		kinds[kind] = append(kinds[kind], Fault{Step: step}, Fault{Step: step, Done: true}, Fault{Step: step, Done: true, Dies: true})
		total += 3
	}
	if total == 0 {
		t.Fatalf("%s=%s is neither \"all\" nor the number of one of %d steps", faultsEnv, only, len(steps))
	}
	if only == "" {
		total = min(total, Whole(faultSample, shortSample))
	}
	return draw(kinds, total)
}

// draw takes count faults at random, from each kind of step in turn, because there are many SELECTs
// and few COMMITs.
func draw(kinds map[string][]Fault, count int) []Fault {
	names := slices.Collect(maps.Keys(kinds)) // in no order
	var drawn []Fault
	for len(drawn) < count {
		for _, name := range names {
			rest := kinds[name]
			if len(rest) == 0 || len(drawn) == count {
				continue
			}
			i := rand.IntN(len(rest)) //nolint:gosec // a sample, and no secret
			drawn = append(drawn, rest[i])
			kinds[name] = slices.Delete(rest, i, i+1)
		}
	}
	return drawn
}

// tally counts the steps of each name.
func tally(steps []string) string {
	count := map[string]int{}
	for _, step := range steps {
		count[step]++
	}
	var list []string
	for _, step := range slices.Sorted(maps.Keys(count)) {
		list = append(list, fmt.Sprintf("%s %d", step, count[step]))
	}
	return strings.Join(list, ", ")
}
