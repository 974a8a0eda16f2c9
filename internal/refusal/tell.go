package refusal

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// mostReasons is how many are remembered at a time.
	mostReasons = 16
	// again is how long after it was told a reason is told again.
	again = 10 * time.Minute
)

// Teller tells the log why there is no work at the broker: each reason once, and again if it lasts.
type Teller struct {
	Log *slog.Logger

	mu   sync.Mutex
	told map[string]time.Time
}

// Tell logs what the broker refuses, or else that it is waited for.
func (t *Teller) Tell(err error, args ...any) {
	if !t.TellRefusal(err, args...) && t.due(reasonOf(err)) {
		t.Log.Warn("waiting for the broker", append(args, "error", err)...)
	}
}

// TellRefusal logs what the broker refuses; it returns false if the error is of something else.
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

// Forget says that all is well again: any reason from now on is a new one.
func (t *Teller) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.told)
}

// reasonOf is the text of an error's own cause, without the addresses around it: each try may have
// another. A denial has its subject in its text, and is a reason by itself.
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
