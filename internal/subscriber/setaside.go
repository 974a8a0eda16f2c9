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
