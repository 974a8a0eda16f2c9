package consume

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	hangsAfter = 10 * time.Second
	remindEach = time.Minute
)

// InHand knows for how long a consumer has worked on what it has in hand. A commit that waits for a
// standby or a quorum, or a lock that another session holds, gives no error: without this, it would
// be silent for as long as it lasts. Nil knows nothing.
type InHand struct {
	what  string // "requests", or "events"
	place string // of the database
	first string // stage
	after time.Duration
	log   *slog.Logger

	mu       sync.Mutex
	since    time.Time // the work began, and none of it has been finished since; zero: nothing is in hand
	messages int
	stage    string
	told     bool // that it hangs
	timer    *time.Timer
}

// NewInHand returns an InHand of a consumer. what its messages are, where the database is that they
// change, and how the first stage of the work is called, is for the log. It hangs if nothing has
// been finished for so long; 0: 10 s. The log warns after half of that.
func NewInHand(what, place, first string, after time.Duration, log *slog.Logger) *InHand {
	if after <= 0 {
		after = hangsAfter
	}
	return &InHand{what: what, place: place, first: first, after: after, log: log}
}

// Stage names what is being done now with what is in hand.
func (h *InHand) Stage(stage string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stage = stage
}

// begin notes that so many messages are being worked on. What was begun before and not finished
// goes on.
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

// warn tells the log of work that hangs, and does so again now and then.
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

// done notes that something was finished, or that nothing is in hand.
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

// age is for how long nothing was finished. With h.mu.
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

// Gauge is a metric of the age of the oldest message in hand.
func (h *InHand) Gauge(name string, labels prometheus.Labels) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: name, ConstLabels: labels,
		Help: "For how long the oldest of the " + h.what + " in hand has been worked on, while none was finished; 0: none is in hand.",
	}, func() float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.age().Seconds()
	})
}
