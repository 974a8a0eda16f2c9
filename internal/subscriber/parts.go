package subscriber

import (
	"context"
	"time"

	"omiappreg.org/keyrotation/internal/health"
)

// remarkWithin is how long a check may take of which the answer is no more than a remark: who asks may not wait for long.
const remarkWithin = 800 * time.Millisecond

// Parts are what a subscriber needs to apply events and to answer from its database, each with a check, for GET /readyz.
func (s *Subscriber) Parts() []health.Part {
	return []health.Part{
		health.Connection(s.cfg.JetStream.Conn()),
		health.Pinged(s.cfg.Store),
		{Name: health.CaughtUp, Check: func(context.Context) error { return s.Ready() }},
	}
}

// PartsFromMemory is [Subscriber.Parts] for one that answers from its memory. While its database or the broker is away it goes on:
// taken out of service it would answer nobody, and started again not before they are back.
func (s *Subscriber) PartsFromMemory() []health.Part {
	parts := s.Parts()
	for i := range parts {
		if name := parts[i].Name; name == health.Broker || name == health.Database {
			parts[i] = withoutIt(parts[i])
		}
	}
	return parts
}

// withoutIt is a part without which a process does its work all the same.
func withoutIt(p health.Part) health.Part {
	check := p.Check
	p.Within = remarkWithin
	p.Check = func(ctx context.Context) error { return health.AsRemark(check(ctx)) }
	return p
}
