package subscriber

import (
	"context"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
)

// toSetAside returns the messages that an operator is to see: of a flood, the newest.
func (s *Subscriber) toSetAside(refused []incoming.Refused) []SetAside {
	var list []SetAside
	for _, r := range refused[max(len(refused)-keptAside, 0):] {
		list = append(list, s.aside(r.Delivery, string(r.Reason), r.Detail))
	}
	return list
}

func (s *Subscriber) aside(d incoming.Delivery, reason, detail string) SetAside {
	return SetAside{d.Sequence, d.Subject, reason, detail, d.Payload, s.cfg.Now().Unix()}
}

// report counts and logs a batch, once it is committed: a batch that is tried again counts once.
func (s *Subscriber) report(ctx context.Context, batch *incoming.Sorted, fresh []events.Invalidation) {
	now := s.cfg.Now()
	// fresh is a subsequence of the batch's events.
	for i, next := 0, 0; i < len(batch.Events) && next < len(fresh); i++ {
		if batch.Events[i].Nonce == fresh[next].Nonce {
			s.metrics.latency.Observe(now.Sub(batch.Published[i]).Seconds())
			next++
		}
	}
	s.metrics.events.WithLabelValues(resultApplied, "").Add(float64(len(fresh)))
	s.metrics.events.WithLabelValues(resultRepeated, "").Add(float64(len(batch.Events) - len(fresh)))
	for _, r := range batch.ByReason() {
		r.Log(s.cfg.Log.With("durable", s.cfg.Durable)).WarnContext(ctx, "messages set aside: they are not to be applied")
		s.metrics.events.WithLabelValues(resultSetAside, string(r.Reason)).Add(float64(r.Count))
	}
}
