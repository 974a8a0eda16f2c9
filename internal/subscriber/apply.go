package subscriber

import (
	"context"
	"errors"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
)

// handle applies the messages of one pull. Package consume acknowledges them if it returns nil, and
// otherwise delivers them again, or finds the one that is at fault.
func (s *Subscriber) handle(ctx context.Context, pulled []*consume.Plain) error {
	fresh, err := s.apply(ctx, incoming.Batch(pulled))
	if fresh > 0 { // refused or repeated events may write nothing
		pulled[0].Witness()
	}
	return err
}

// Receive applies a batch. When it returns nil, each message has had its effect or is set aside,
// for good.
func (s *Subscriber) Receive(ctx context.Context, batch []incoming.Delivery) error {
	_, err := s.apply(ctx, batch)
	return err
}

// apply is the life of a batch, from the pull to the acknowledgement: steps 4 to 8 of the package
// comment. It returns how many events were new.
func (s *Subscriber) apply(ctx context.Context, batch []incoming.Delivery) (int, error) {
	s.working.Lock()
	defer s.working.Unlock()
	verified, unbelieved := s.verify(batch)
	if err := s.announceUnbelieved(ctx, unbelieved); err != nil {
		return 0, err
	}
	fresh, err := s.commit(ctx, lastOf(batch), verified.Events, s.toSetAside(verified.Refused))
	if err != nil {
		return 0, err
	}
	s.report(ctx, &verified, fresh)
	if err := s.cfg.Applied(ctx, verified.Events, fresh); err != nil {
		return 0, err
	}
	if err := s.removeApplied(ctx, batch, verified.Refused); err != nil {
		return 0, err
	}
	s.asOf.applied(batch)
	return len(fresh), nil
}

// The stages of a batch, for the log if it hangs.
const (
	stageAnnounce = "tell" // the broker what is not believed
	stageCommit   = "commit"
)

// commit applies a batch whose last message is at this place of the stream, see
// [storage.Store.ApplyUpTo]. If the database was replaced under this process, the stream is read
// from its start.
func (s *Subscriber) commit(ctx context.Context, last uint64, batch []events.Invalidation, setAside []storage.SetAside) ([]events.Invalidation, error) {
	var to storage.Place
	if s.created != 0 {
		to = storage.Place{Created: s.created, Sequence: last}
	}
	s.inHand.Stage(stageCommit)
	fresh, err := s.cfg.Store.ApplyUpTo(ctx, to, s.written, batch, setAside)
	if errors.Is(err, storage.ErrRestored) {
		s.cfg.Log.WarnContext(ctx, "the database was replaced, or restored from a backup: the durable is recreated, and the stream read from its start",
			"durable", s.cfg.Durable)
		if err := s.deleteDurable(ctx); err != nil { // it ends the consumer; a new one is opened
			return nil, err
		}
		s.written = storage.Place{}
	}
	if err == nil && to != (storage.Place{}) {
		s.written = storage.Place{Created: s.created, Sequence: max(s.written.Sequence, last)}
	}
	return fresh, err
}

// lastOf returns the highest place of a batch.
func lastOf(batch []incoming.Delivery) (last uint64) {
	for i := range batch {
		last = max(last, batch[i].Sequence)
	}
	return last
}

// report counts and logs a batch once it is committed, so a batch that is retried counts once.
func (s *Subscriber) report(ctx context.Context, batch *incoming.Sorted, fresh []events.Invalidation) {
	now := s.cfg.Now()
	// fresh is a subsequence of the batch's events.
	for i, next := 0, 0; i < len(batch.Events) && next < len(fresh); i++ {
		if storage.SameEvent(&batch.Events[i], &fresh[next]) {
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
