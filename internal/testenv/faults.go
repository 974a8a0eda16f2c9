package testenv

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
)

// Fault is what goes wrong at one I/O step of a program, and what that does to it.
type Fault struct {
	// Step is the number of the step, in the order in which the program takes them. The first is 1;
	// 0 means that nothing fails.
	Step int
	// Done says that the step is done and only its answer is lost. Otherwise the step is not done.
	Done bool
	// Dies says that the program takes no further step, as if it were killed at this one.
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

// Faults stands between one instance of a program and its I/O: its database ([Faults.Session])
// and its broker ([Faults.Dial]). It counts each operation as one step, and the fault strikes at
// its step. The program does not notice Faults.
type Faults struct {
	// Log is where the program logs. It is shown if the test fails.
	Log *slog.Logger
	// Before is called before each step, with its name; nil disables the callback. Set it before
	// the program starts.
	Before func(step string)

	fault Fault
	log   lockedBuffer

	mu     sync.Mutex
	armed  bool
	taken  []string // the steps so far
	struck string   // the step that the fault struck; empty: none
	dead   bool
	lines  map[*faultyLine]struct{} // connections to the broker
}

// NewFaults returns a Faults with one fault.
func NewFaults(fault Fault) *Faults {
	f := &Faults{fault: fault, lines: map[*faultyLine]struct{}{}}
	f.Log = slog.New(slog.NewTextHandler(&f.log, nil))
	return f
}

// Arm starts the count of steps. What a program does while it starts is not counted.
func (f *Faults) Arm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = true
}

// Disarm ends the count of steps. No fault strikes after that.
func (f *Faults) Disarm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
}

// Struck returns the step that the fault struck, such as "COMMIT" or "PUB omi.v1.receipts". It is
// empty until then.
func (f *Faults) Struck() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.struck
}

// Steps returns the steps that were counted so far.
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

// verdict says what happens to a step.
type verdict int

const (
	passed  verdict = iota
	notDone         // it fails, and nothing has happened
	lost            // it happens, and its answer is lost
)

// step counts an operation, and says what happens to it.
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
			go line.cut() // in the background, because this step may hold the line
		}
	}
	if f.fault.Done {
		return lost
	}
	return notDone
}

// hold registers a connection, which ends when the program dies. It returns false if the program is
// dead.
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

// lockedBuffer is a log that can be read while it is written.
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
