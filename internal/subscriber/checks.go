package subscriber

import (
	"context"
	"errors"
	"time"

	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// remarkWithin limits a check whose result is only a remark, because the client may not wait for
// long.
const remarkWithin = 800 * time.Millisecond

// Parts are what a subscriber needs to apply events and to answer from its database, each with a
// check, for GET /readyz. While the broker is unavailable, it still answers over HTTP: if it were
// taken out of service, no one would answer.
func (s *Subscriber) Parts() []health.Part {
	return []health.Part{
		withoutIt(health.Connection(s.cfg.JetStream.Conn())),
		health.Pinged(s.cfg.Store),
		{Name: health.Consumer, Check: s.checkConsumer},
		{Name: health.Requests, Check: s.inHand.Check},
		{Name: health.CaughtUp, Check: func(context.Context) error { return s.Ready() }},
	}
}

// PartsFromMemory is [Subscriber.Parts] for a process that answers from its memory. It also goes on
// while its database is unavailable. If it were restarted, it could not answer before the database
// is back.
func (s *Subscriber) PartsFromMemory() []health.Part {
	parts := s.Parts()
	for i := range parts {
		switch parts[i].Name {
		case health.Database:
			parts[i] = withoutIt(parts[i])
		case health.Requests:
			parts[i].Check = s.checkInHand
		}
	}
	return parts
}

// withoutIt is a part that a process can do without, unless it can't come back.
func withoutIt(p health.Part) health.Part {
	check := p.Check
	p.Check = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, remarkWithin)
		defer cancel()
		err := check(ctx)
		if errors.Is(err, sqldb.ErrFault) {
			return err
		}
		return health.AsRemark(err)
	}
	return p
}

// checkInHand fails while events hang though the database answers. If the database doesn't answer,
// that is the fault to report.
func (s *Subscriber) checkInHand(ctx context.Context) error {
	err := s.inHand.Check(ctx)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, remarkWithin)
	defer cancel()
	if s.cfg.Store.Ping(ctx) != nil {
		return health.AsRemark(err)
	}
	return err
}
