package process

import (
	"os"
	"runtime/debug"
)

// relaxedGOGC is a default of GOGC. Go's own is 100.
const relaxedGOGC = 600

// RelaxGC lets the heap grow to seven times what is live in it before it is collected; Go's own
// default is twice. It is for a process that needs little memory however many services there are,
// and not for Auth, which has all of them in its memory. GOGC and GOMEMLIMIT override it.
func RelaxGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(relaxedGOGC)
	}
}
