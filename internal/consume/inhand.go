package consume

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	hangsAfter = 10 * time.Second
	remindEach = time.Minute
)

// InHand tracks how long a consumer has been working on the messages in hand. A commit that waits
// for a standby or a quorum, or a lock that another session holds, gives no error: without InHand,
// it would be silent for as long as it lasts. A nil InHand does nothing.
type InHand struct {
	what  string // "requests", or "events"
	place string // where the database is
	first string // the first stage
	after time.Duration
	log   *slog.Logger

	mu sync.Mutex
	// when the work began, if none of it has been finished since; zero if nothing is in hand
	since    time.Time
	messages int
	stage    string
	told     bool // the log has been told that it hangs
	timer    *time.Timer
}

// NewInHand returns an InHand of a consumer. The log names the messages (what), the database that
// they change (place), and the first stage of the work (first). Work hangs if none of it has been
// finished for the time after; 0 means 10 s. The log warns after half of that time.
func NewInHand(what, place, first string, after time.Duration, log *slog.Logger) *InHand {
	if after <= 0 {
		after = hangsAfter
	}
	return &InHand{what: what, place: place, first: first, after: after, log: log}
}

// Stage names the current stage of the work in hand.
func (h *InHand) Stage(stage string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stage = stage
}

// begin notes how many messages are being worked on. Work that has begun and is not finished keeps
// its start.
func (h *InHand) begin(messages int) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.messages, h.stage = messages, h.first
	if !h.since.IsZero() {
		return
	}
	h.since = time.Now()
	since := h.since
	h.timer = time.AfterFunc(h.after/2, func() { h.warn(since) })
}

// warn logs that work hangs, and repeats that each minute.
func (h *InHand) warn(since time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.since.Equal(since) {
		return
	}
	h.told = true
	h.log.Warn("work hangs: nothing of what is in hand has been finished", h.what, h.messages, "for", h.age().String(), "stage", h.stage,
		"database", h.place, "do", "look for a lock, a commit that waits for a standby, a range without a quorum, and a full disk "+
			"at the database (docs/operations.md, requests)")
	h.timer.Reset(remindEach)
}

// done notes that some work was finished, or that nothing is in hand.
func (h *InHand) done() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		return
	}
	if h.told {
		h.log.Info("work goes on again", h.what, h.messages, "hung_for", h.age().String(), "stage", h.stage)
	}
	h.timer.Stop()
	h.since, h.told = time.Time{}, false
}

// age returns how long nothing has been finished. The caller holds h.mu.
func (h *InHand) age() time.Duration {
	if h.since.IsZero() {
		return 0
	}
	return time.Since(h.since).Round(time.Millisecond)
}

// Check returns an error while the work hangs.
func (h *InHand) Check(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if age := h.age(); age >= h.after {
		return fmt.Errorf("%d in hand, and none was finished for %v (stage: %s)", h.messages, age.Round(time.Second), h.stage)
	}
	return nil
}

// Seconds returns for how long nothing of what is in hand was finished, for a metric. 0 means that
// nothing is in hand.
func (h *InHand) Seconds() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.age().Seconds()
}
