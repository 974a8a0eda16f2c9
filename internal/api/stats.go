package api

import (
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/micro"
)

// calls counts what became of an endpoint's calls. micro looks at a call when its handler returns, which is before ours has
// its answer: it counts no error, and next to no time.
type calls struct{ answered, errors, took atomic.Int64 }

func (c *calls) count(err error, took time.Duration) {
	c.answered.Add(1)
	c.took.Add(int64(took))
	if err != nil {
		c.errors.Add(1)
	}
}

// Stats is the "data" of an endpoint in its service's statistics (`nats micro stats`).
type Stats struct {
	Answered              int64 `json:"answered"`
	Errors                int64 `json:"errors"`                  // among them: answers that are a problem document
	AverageProcessingTime int64 `json:"average_processing_time"` // nanoseconds, as micro's own
}

func (c *calls) stats() Stats {
	s := Stats{Answered: c.answered.Load(), Errors: c.errors.Load()}
	s.AverageProcessingTime = c.took.Load() / max(s.Answered, 1)
	return s
}

// statsOf tells micro of each endpoint.
func statsOf(counted map[string]*calls) micro.StatsHandler {
	return func(e *micro.Endpoint) any { return counted[e.Name].stats() }
}
