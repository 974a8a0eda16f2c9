package subscriber

import (
	"context"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
)

const unknownKeyDetail = "It is an event of this registry, but by a key that is not trusted"

// verify splits a batch into what is to be applied and what is not, and says which events processes
// that trust others may believe.
func (s *Subscriber) verify(batch []incoming.Delivery) (incoming.Sorted, unbelieved) {
	trust := s.Trust()
	sorted := incoming.Sort(trust, batch)
	var u unbelieved
	for i, r := range sorted.Refused {
		switch r.Reason {
		case events.UntrustedSignature:
			keyID, looks := trust.OfUnknownKey(r.Subject, r.Payload)
			if !looks {
				continue
			}
			detail := unknownKeyDetail + "."
			if keyID != "" {
				detail = unknownKeyDetail + ": key_id " + printable.Text(keyID) + "."
			}
			sorted.Refused[i].Refusal = &events.Refusal{Reason: storage.UnknownKey, Detail: detail}
		case events.EndedRegistryKey, events.WrongOrigin: // signed by a key that is or was trusted
		default:
			continue
		}
		if u.from == 0 || r.Sequence < u.from {
			u = unbelieved{r.Sequence, trust.Announcement()}
		}
	}
	return sorted, u
}

// toSetAside returns the messages that an operator should see. Of a flood, these are the newest of
// each class.
func (s *Subscriber) toSetAside(refused []incoming.Refused) []storage.SetAside {
	var list []storage.SetAside
	kept := map[storage.Class]int{}
	for _, r := range slices.Backward(refused) {
		if c := storage.ClassOf(string(r.Reason)); kept[c] < storage.KeptSetAside {
			kept[c]++
			list = append(list, s.newSetAside(r.Delivery, string(r.Reason), r.Detail))
		}
	}
	slices.Reverse(list)
	return list
}

func (s *Subscriber) newSetAside(d incoming.Delivery, reason, detail string) storage.SetAside {
	s.setAside.added(d.Sequence)
	return storage.SetAside{
		StreamSequence: d.Sequence, Subject: d.Subject, Reason: reason, Detail: detail, Payload: d.Payload, At: s.cfg.Now().Unix(),
	}
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

// removeApplied removes messages from the list of what is set aside if they were applied now,
// because more is trusted or a cause is gone.
func (s *Subscriber) removeApplied(ctx context.Context, batch []incoming.Delivery, refused []incoming.Refused) error {
	still := make(map[uint64]bool, len(refused))
	for _, r := range refused {
		still[r.Sequence] = true
	}
	var places []uint64
	for i := range batch {
		if place := batch[i].Sequence; s.setAside.mayHave(place) && !still[place] {
			places = append(places, place)
		}
	}
	if len(places) == 0 {
		return nil
	}
	slices.Sort(places)
	defer s.setAside.changed()
	return s.cfg.Store.RemoveSetAside(ctx, places)
}
