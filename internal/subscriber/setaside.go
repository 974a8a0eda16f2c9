package subscriber

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
)

// setAside is what this process knows of the messages that are set aside. It looks at its database
// now and then.
type setAside struct {
	mu       sync.Mutex
	byReason map[string]int64
	upTo     uint64    // no message beyond this place of the stream is set aside
	due      time.Time // the next look
}

const countEvery = 10 * time.Second

// added notes that a message is to be set aside.
func (a *setAside) added(place uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.upTo, a.due = max(a.upTo, place), time.Time{}
}

// changed makes the next look due.
func (a *setAside) changed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due = time.Time{}
}

// mayHave says whether the message at this place may be set aside.
func (a *setAside) mayHave(place uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return place <= a.upTo
}

// isDue says whether it is time to look. If it is, the next look is put off.
func (a *setAside) isDue(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Before(a.due) {
		return false
	}
	a.due = now.Add(countEvery)
	return true
}

// store stores what was counted.
func (a *setAside) store(byReason map[string]int64, upTo uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.byReason, a.upTo = byReason, max(a.upTo, upTo)
}

func (a *setAside) counts() map[string]int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.byReason)
}

// countSetAside counts what is set aside, if that is due.
func (s *Subscriber) countSetAside(ctx context.Context) error {
	if !s.setAside.isDue(time.Now()) {
		return nil
	}
	byReason, upTo, err := s.cfg.Store.CountSetAside(ctx)
	if err != nil {
		s.setAside.changed()
		return err
	}
	s.setAside.store(byReason, upTo)
	s.metrics.showSetAside(byReason)
	return nil
}

// Remarks says what is set aside, with a line for each reason, for a person who asks how the
// process is.
func (s *Subscriber) Remarks() string {
	counts := s.setAside.counts()
	var text strings.Builder
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		n := strconv.FormatInt(counts[reason], 10)
		if counts[reason] >= storage.KeptSetAside {
			n += " or more"
		}
		fmt.Fprintf(&text, "set aside, %s: %s (%s)\n", reason, n, remark(reason))
	}
	return text.String()
}

// remark says what a reason means and what to do about it.
func remark(reason string) string {
	switch storage.ClassOf(reason) {
	case storage.Unhandled:
		return "events that could not be handled: correct the cause that the log and the command set-aside name, and start this process again"
	case storage.Unbelieved:
		switch reason {
		case string(events.EndedRegistryKey):
			return "events that a registry key signed after its end in --trust: its thief publishes here, or the end is too early"
		case storage.UnknownKey:
			return "events by a registry key that is not trusted: if the registry has a new key, add it by --trust or in --trust-file; else another party publishes here"
		}
		return "events of a registry with another domain name: look at --origin"
	}
	return "no events of this registry: another party publishes here"
}

// toSetAside returns the messages that an operator should see. Of a flood, these are the newest of
// each class.
func (s *Subscriber) toSetAside(refused []incoming.Refused) []storage.SetAside {
	var list []storage.SetAside
	kept := map[storage.Class]int{}
	now := s.cfg.Now() // one time for all, so that the newest place is the newest message
	for _, r := range slices.Backward(refused) {
		if c := storage.ClassOf(string(r.Reason)); kept[c] < storage.KeptSetAside {
			kept[c]++
			list = append(list, s.newSetAside(r.Delivery, string(r.Reason), r.Detail, now))
		}
	}
	slices.Reverse(list)
	return list
}

func (s *Subscriber) newSetAside(d incoming.Delivery, reason, detail string, now time.Time) storage.SetAside {
	s.setAside.added(d.Sequence)
	return storage.SetAside{
		StreamSequence: d.Sequence, Subject: d.Subject, Reason: reason, Detail: detail, Payload: d.Payload, At: now.Unix(),
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

// setPoisonAside keeps a message that makes apply panic, or fail while it applies others.
// The event stays in the stream, and is tried again when the process restarts.
func (s *Subscriber) setPoisonAside(ctx context.Context, m *consume.Plain, why consume.Fault) error {
	s.working.Lock()
	defer s.working.Unlock()
	return s.setAsideUnhandled(ctx, incoming.Of(m), why.Reason, why.Detail)
}

// setAsideUnhandled sets aside what can't be handled.
func (s *Subscriber) setAsideUnhandled(ctx context.Context, d incoming.Delivery, reason, detail string) error {
	if err := s.announce(ctx, func(says announcement) { says.addFailed(d.Sequence) }); err != nil {
		return err
	}
	if _, err := s.commit(ctx, d.Sequence, nil, []storage.SetAside{s.newSetAside(d, reason, detail, s.cfg.Now())}); err != nil {
		return err
	}
	s.metrics.events.WithLabelValues(resultSetAside, reason).Inc()
	return nil
}
