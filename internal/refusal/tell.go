package refusal

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// mostReasons limits the reasons that are remembered.
	mostReasons = 16
	// again is the time after which a reason is logged again.
	again = 10 * time.Minute
)

// Teller logs why there is no work at the broker: each reason once, and again if it lasts.
type Teller struct {
	Log *slog.Logger

	mu   sync.Mutex
	told map[string]time.Time
}

// Tell logs what the broker refuses, or otherwise that the process waits for the broker.
func (t *Teller) Tell(err error, args ...any) {
	if !t.TellRefusal(err, args...) && t.due(reasonOf(err)) {
		t.Log.Warn("waiting for the broker", append(args, "error", err)...)
	}
}

// TellRefusal logs what the broker refuses. It returns false if the error has another cause.
func (t *Teller) TellRefusal(err error, args ...any) bool {
	r, refused := Of(err)
	if refused && t.due(reasonOf(err)) {
		t.Log.Warn("the broker is there, and not as it is needed: waiting does not change that",
			append(args, "error", err, "why", "the broker "+r.What, "do", r.Do)...)
	}
	return refused
}

func (t *Teller) due(reason string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at, known := t.told[reason]; known && time.Since(at) < again {
		return false
	}
	if t.told == nil || len(t.told) == mostReasons {
		t.told = map[string]time.Time{}
	}
	t.told[reason] = time.Now()
	return true
}

// Forget marks that all is well again: any reason from now on is a new one.
func (t *Teller) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.told)
}

// reasonOf returns the text of an error's own cause, without addresses around it, which may differ
// at each try. A denial has its subject in its text, and is a reason by itself.
func reasonOf(err error) string {
	if errors.Is(err, nats.ErrPermissionViolation) {
		return err.Error()
	}
	for {
		cause := errors.Unwrap(err)
		if cause == nil {
			return err.Error()
		}
		err = cause
	}
}
