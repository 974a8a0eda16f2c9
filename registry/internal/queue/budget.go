package queue

import (
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// The budget for garbage.
const (
	GarbageAnswers = 100         // receipts a second without a readable nonce, or for unbound names
	GarbageBurst   = waitingEach // as many as may wait here
)

// Why garbage is dropped, in the metric and in the log.
const (
	unanswered   = "unanswered"   // there is more than the budget for answers allows
	Unanswerable = "unanswerable" // its subject names no service that could read an answer
)

// budget limits how much garbage is answered, and counts the rest. It is safe for concurrent use.
type budget struct {
	answers *rate.Limiter
	results *prometheus.CounterVec // requests by kind and result

	mu      sync.Mutex
	dropped map[string]int // by reason, since the last line in the log
}

func newBudget(results *prometheus.CounterVec) *budget {
	return &budget{answers: rate.NewLimiter(GarbageAnswers, GarbageBurst), results: results, dropped: map[string]int{}}
}

// charge takes one answer from the budget, and reports whether there was one. Otherwise a message
// is not answered, and is counted.
func (b *budget) charge() bool {
	if b.answers.Allow() {
		return true
	}
	b.drop(unanswered)
	return false
}

// Charge takes an answer from the budget for garbage, as [budget.charge] does.
func (q *Queue) Charge() bool { return q.budget.charge() }

// drop counts garbage that gets no answer.
func (b *budget) drop(why string) {
	b.results.WithLabelValues("", why).Inc()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropped[why]++
}

// tell logs what was dropped since the last call.
func (b *budget) tell(log *slog.Logger) {
	b.mu.Lock()
	dropped := b.dropped
	b.dropped = map[string]int{}
	b.mu.Unlock()
	if len(dropped) > 0 {
		log.Warn("dropped garbage: it has no nonce or is for an unknown service and exceeds the budget for answers, or its subject names no service",
			unanswered, dropped[unanswered], Unanswerable, dropped[Unanswerable])
	}
}
