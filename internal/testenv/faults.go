package testenv

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
)

// Fault is what goes wrong at one I/O step of a program, and what that does to it.
type Fault struct {
	// Step is which step, counted from 1 on in the order in which the program takes them; 0: none.
	Step int
	// Done says that the step is done and only its answer is lost. Else it isn't done.
	Done bool
	// Dies says that the program takes no further step, as if it had been killed there.
	Dies bool
}

// String says what the fault does, for the log of a test that failed.
func (f Fault) String() string {
	what := "not done"
	if f.Done {
		what = "done, but errored"
	}
	if f.Dies {
		what += ", and dead from there on"
	}
	return fmt.Sprintf("step %d: %s", f.Step, what)
}

// Faults stands between one instance of a program and its I/O: its database ([Faults.Connector]) and its broker
// ([Faults.Dial]). It counts each operation as one step, and lets the fault strike at its step. The program itself knows
// nothing of it.
type Faults struct {
	// Log is for the program to write to: it is shown if the test fails.
	Log *slog.Logger
	// Before is called before each step, with its name. Nil: nothing is. Set it before the program starts.
	Before func(step string)

	fault Fault
	log   lockedBuffer

	mu     sync.Mutex
	armed  bool
	taken  []string // the steps so far
	struck string   // the one that the fault struck; empty: none
	dead   bool
	lines  map[*faultyLine]struct{} // to the broker
}

// NewFaults returns what lets one fault strike.
func NewFaults(fault Fault) *Faults {
	f := &Faults{fault: fault, lines: map[*faultyLine]struct{}{}}
	f.Log = slog.New(slog.NewTextHandler(&f.log, nil))
	return f
}

// Arm begins to count: what a program does to start is none of the steps that a test is about.
func (f *Faults) Arm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = true
}

// Disarm ends what Arm began: a test that is satisfied stops counting, and no fault strikes any more.
func (f *Faults) Disarm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
}

// Struck returns what the fault struck, such as "COMMIT" or "PUB omi.v1.receipts"; empty: nothing yet.
func (f *Faults) Struck() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.struck
}

// Steps returns what was done so far, step by step.
func (f *Faults) Steps() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.taken[:len(f.taken):len(f.taken)]
}

// Dead reports whether the program has died of its fault.
func (f *Faults) Dead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// verdict is what becomes of a step.
type verdict int

const (
	passed  verdict = iota
	notDone         // it fails, and nothing has happened
	lost            // it happens, and fails
)

// step counts an operation, and says what becomes of it.
func (f *Faults) step(what string) verdict {
	if f.Before != nil {
		f.Before(what)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return notDone
	}
	if !f.armed {
		return passed
	}
	f.taken = append(f.taken, what)
	if len(f.taken) != f.fault.Step {
		return passed
	}
	f.struck = what
	if f.fault.Dies {
		f.dead = true
		for line := range f.lines {
			go line.cut() // not here and now: this step may be on its way through it
		}
	}
	if f.fault.Done {
		return lost
	}
	return notDone
}

// hold registers a connection that ends when the program dies.
func (f *Faults) hold(line *faultyLine) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.dead {
		f.lines[line] = struct{}{}
	}
	return !f.dead
}

func (f *Faults) drop(line *faultyLine) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.lines, line)
}

// lockedBuffer is a log that is read while it may still be written.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns what was written.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
