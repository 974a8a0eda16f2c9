package process

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// freeHeap is how large the heap may grow before it is collected, in bytes: as a rule a process needs a few dozen MiB, and
	// Go would collect them whenever they have doubled, several times a second under load.
	freeHeap       = 256 << 20
	usualPercent   = 100 // Go's own: the heap may double
	largestPercent = 1000
	liveHeap       = "/gc/heap/live:bytes"
)

// paceCollections lets the heap grow to [freeHeap] where that is more than Go would let it. What a large process takes stays
// as it is: beyond half of that, Go's own setting holds. Who sets GOGC is obeyed, and so is GOMEMLIMIT.
func paceCollections() {
	if os.Getenv("GOGC") == "" {
		new(pacer).next()
	}
}

// pacer sets Go's percentage anew after each collection, by what it left.
type pacer struct{ set int }

// next is called after each collection: by then nobody knows the mark any more.
func (p *pacer) next() {
	sample := []metrics.Sample{{Name: liveHeap}}
	metrics.Read(sample)
	if percent := percentFor(sample[0].Value.Uint64()); percent != p.set {
		debug.SetGCPercent(percent)
		p.set = percent
	}
	mark := &struct{ p *pacer }{p} // with a pointer: else it would share its memory with others, and live as long as they do
	runtime.AddCleanup(mark, (*pacer).next, p)
}

// percentFor returns by how much the heap may grow over what the last collection left of it, in steps that make few changes.
func percentFor(live uint64) int {
	if live == 0 {
		return largestPercent
	}
	percent := int(min(freeHeap*100/live, usualPercent+largestPercent)) - usualPercent
	return max(percent/25*25, usualPercent)
}
