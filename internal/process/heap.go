package process

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

	"github.com/alecthomas/kong"
)

const (
	// freeHeap is how large the heap may grow before it is collected, in bytes: as a rule a process needs a few dozen MiB, and
	// Go would collect them whenever they have doubled, several times a second under load.
	freeHeap       = 256 << 20
	usualPercent   = 100 // Go's own: the heap may double
	largestPercent = 1000
	liveHeap       = "/gc/heap/live:bytes"
)

// paceCollections lets the heap grow to [freeHeap], where that is more than Go would let it. What a large process takes stays
// as it is: beyond half of that, Go's own setting holds. A process that stands for several beside a broker may have so much for
// each of them on top of what Go lets it have, which is for the broker: by itself, that would not be marked for what the others
// allocate. Who sets GOGC is obeyed, and so is GOMEMLIMIT.
func paceCollections(processes int) {
	if os.Getenv("GOGC") == "" {
		(&pacer{processes: processes}).next()
	}
}

// processesIn is how many processes a command stands for: one, unless it says otherwise.
func processesIn(command *kong.Context) int {
	if node := command.Selected(); node != nil && node.Target.CanAddr() {
		if several, ok := node.Target.Addr().Interface().(interface{ Processes() int }); ok {
			return several.Processes()
		}
	}
	return 1
}

// pacer sets Go's percentage anew after each collection, by what it left.
type pacer struct {
	processes int // that this one stands for
	set       int
}

// next is called after each collection: by then nobody knows the mark any more.
func (p *pacer) next() {
	sample := []metrics.Sample{{Name: liveHeap}}
	metrics.Read(sample)
	if percent := percentFor(sample[0].Value.Uint64(), p.processes); percent != p.set {
		debug.SetGCPercent(percent)
		p.set = percent
	}
	mark := &struct{ p *pacer }{p} // with a pointer: else it would share its memory with others, and live as long as they do
	runtime.AddCleanup(mark, (*pacer).next, p)
}

// percentFor returns by how much the heap may grow over what the last collection left of it, in steps that make few changes.
func percentFor(live uint64, processes int) int {
	if live == 0 {
		return largestPercent
	}
	percent := uint64(processes) * freeHeap * 100 / live
	if processes == 1 {
		percent -= min(percent, 100) // what is live counts
	} else {
		percent += usualPercent
	}
	return max(int(min(percent, largestPercent))/25*25, usualPercent)
}
