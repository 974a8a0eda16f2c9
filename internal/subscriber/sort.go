package subscriber

import (
	"context"
	"errors"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
)

// reasonPanic is the reason of a message that no reason of the contract explains: it makes this program panic.
const reasonPanic = "panic"

// sorted is a batch, told apart into what is to be applied and what is not.
type sorted struct {
	events    []events.Invalidation
	published []time.Time // of each of events
	aside     []SetAside
	refusals  []refusals // by reason
}

// refusals are the messages of a batch that share a reason, for one line in the log: a flood of garbage must not
// become a flood of lines.
type refusals struct {
	reason events.Reason
	count  int
	first  Delivery
	detail string
}

// verdict is what became of one message: an event, or a refusal.
type verdict struct {
	event events.Invalidation
	err   error
}

func (s *Subscriber) sort(batch []Delivery) sorted {
	var out sorted
	for i, v := range s.verify(batch) {
		if v.err == nil {
			out.events = append(out.events, v.event)
			out.published = append(out.published, batch[i].Published)
			continue
		}
		refusal := refusalOf(v.err)
		out.count(batch[i], refusal)
		if !garbage(refusal.Reason) {
			out.aside = append(out.aside, s.aside(batch[i], string(refusal.Reason), refusal.Detail))
		}
	}
	return out
}

// refusalOf returns why a message must not be applied. [events.Trust.Invalidation] has no other errors.
func refusalOf(err error) *events.Refusal {
	if refusal := (*events.Refusal)(nil); errors.As(err, &refusal) {
		return refusal
	}
	return &events.Refusal{Reason: events.MalformedMessage, Detail: err.Error()}
}

// garbage says whether a message is not even an envelope. Anyone who may publish can make any amount of it, and it
// tells an operator nothing, so it never reaches the database.
func garbage(reason events.Reason) bool {
	return reason == events.MalformedMessage || reason == events.UnsupportedVersion
}

func (s *sorted) count(d Delivery, refusal *events.Refusal) {
	i := slices.IndexFunc(s.refusals, func(r refusals) bool { return r.reason == refusal.Reason })
	if i < 0 {
		i = len(s.refusals)
		s.refusals = append(s.refusals, refusals{reason: refusal.Reason, first: d, detail: refusal.Detail})
	}
	s.refusals[i].count++
}

func (s *Subscriber) aside(d Delivery, reason, detail string) SetAside {
	return SetAside{d.Sequence, d.Subject, reason, detail, d.Payload, s.cfg.Now().Unix()}
}

// checksEach is how many signatures are worth a goroutine: half a millisecond of work.
const checksEach = 8

// verify checks a batch on as many cores as it is worth.
func (s *Subscriber) verify(batch []Delivery) []verdict {
	verdicts := make([]verdict, len(batch))
	parallel.Each(len(batch), checksEach, func(i int) {
		verdicts[i].event, verdicts[i].err = s.cfg.Trust.Invalidation(batch[i].Subject, batch[i].Payload)
	})
	return verdicts
}

// report counts and logs a batch, once it is committed: a batch that is tried again counts once.
func (s *Subscriber) report(ctx context.Context, batch *sorted, fresh []events.Invalidation) {
	now := s.cfg.Now()
	// fresh is a subsequence of the batch's events.
	for i, next := 0, 0; i < len(batch.events) && next < len(fresh); i++ {
		if batch.events[i].Nonce == fresh[next].Nonce {
			s.metrics.latency.Observe(now.Sub(batch.published[i]).Seconds())
			next++
		}
	}
	s.metrics.events.WithLabelValues(resultApplied, "").Add(float64(len(fresh)))
	s.metrics.events.WithLabelValues(resultRepeated, "").Add(float64(len(batch.events) - len(fresh)))
	for _, r := range batch.refusals {
		log := s.cfg.Log.With("durable", s.cfg.Durable, "reason", string(r.reason), "detail", r.detail, "count", r.count,
			"first_subject", printable(r.first.Subject), "first_stream_sequence", r.first.Sequence)
		result := resultSetAside
		if garbage(r.reason) {
			result = resultGarbage
			log.WarnContext(ctx, "messages dropped: they are not messages of the protocol")
		} else {
			log.WarnContext(ctx, "messages set aside: they are not to be applied")
		}
		s.metrics.events.WithLabelValues(result, string(r.reason)).Add(float64(r.count))
	}
}
