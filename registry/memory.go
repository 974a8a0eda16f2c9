package registry

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

const (
	rememberAtMost = 65_536 // services; some 450 bytes each
	rememberRecent = 64     // rotations of a minute; a service with more is not remembered
	// rememberRefused: requests by the Master Key, until their receipts are in the stream and long
	// after.
	rememberRefused = 4096
	// pessimisticFor is how long batches are pessimistic after remembered state cost a batch, and
	// how long a service is read after its own remembered state was stale. A client that sends used
	// keys on purpose can have one batch decided twice in that time.
	pessimisticFor = time.Minute
	// staleAtMost: up to one in so many remembered states may be stale. More are if replicas
	// alternate on a service.
	staleAtMost = 8
)

// memory is what an optimistic batch takes for granted without asking the database: the state of
// each service that this replica changed last. It can be wrong, because another replica may have
// changed a service, or a backup may have been restored. optimistic.go says how a batch is
// confirmed.
//
// It is not safe for concurrent use: only the goroutine that decides batches uses it.
type memory struct {
	services *simplelru.LRU[events.Target, remembered]
	refused  *simplelru.LRU[decision.RequestID, struct{}]
	epoch    int // the restore guard's, when the services were remembered

	pessimisticUntil time.Time // batches are
}

// remembered is a service in the state in which this replica left it.
type remembered struct {
	decision.Service
	pessimisticUntil time.Time // until then the service is read: another replica changes it too
}

func newMemory() *memory {
	return &memory{services: newLRU[events.Target, remembered](rememberAtMost), refused: newLRU[decision.RequestID, struct{}](rememberRefused)}
}

func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	l, err := simplelru.NewLRU[K, V](size, nil)
	if err != nil {
		panic("registry: " + err.Error()) // it refuses no size but those below 1
	}
	return l
}

// begin returns the mode for the next batch. epoch and complete are what the restore guard says.
func (m *memory) begin(now time.Time, epoch int, complete bool) decision.Mode {
	if epoch != m.epoch {
		m.services.Purge()
		m.epoch = epoch
	}
	if !complete || now.Before(m.pessimisticUntil) {
		return decision.Pessimistic
	}
	return decision.Optimistic
}

// of returns the remembered state of a service; nil: it must be read.
func (m *memory) of(t events.Target, now time.Time) *decision.Service {
	if one, ok := m.services.Get(t); ok && one.Sequence > 0 && !now.Before(one.pessimisticUntil) {
		return &one.Service
	}
	return nil
}

// put remembers a state.
func (m *memory) put(t events.Target, s *decision.Service) {
	if len(s.Recent) > rememberRecent {
		m.services.Remove(t)
		return
	}
	one, _ := m.services.Peek(t)
	one.Service = *s
	m.services.Add(t, one)
}

// forget drops a state that was stale, and has the service read for a while: if two replicas get
// requests of one service alternately, each of their commits would fail first. It reports whether
// the state was in use.
func (m *memory) forget(t events.Target, now time.Time) (used bool) {
	used = m.of(t, now) != nil
	m.services.Add(t, remembered{pessimisticUntil: now.Add(pessimisticFor)})
	return used
}

// learn remembers what a commit wrote, and forgets what was in conflict.
func (m *memory) learn(now time.Time, b *decision.Batch, l ledger.Conflicts, err error) {
	stale := 0
	for _, g := range b.Groups {
		if err == nil && !l.Services[g.Target] {
			m.learnRefused(g)
		}
		switch {
		case err != nil || l.Taken && l.Services[g.Target]:
			m.services.Remove(g.Target)
		case l.Services[g.Target]:
			if m.forget(g.Target, now) && b.State.Remembered[g.Target] {
				stale++
			}
		case g.Changed():
			m.put(g.Target, &g.Service)
		}
	}
	if err != nil || l.Taken {
		m.pessimisticUntil = now.Add(pessimisticFor)
		return
	}
	m.countStale(now, stale, b)
}

func (m *memory) learnRefused(g *decision.Group) {
	for i := range g.Outcomes {
		if o := &g.Outcomes[i]; o.Verdict == decision.Refused && o.In.Request.Kind.ByMasterKey() {
			m.refused.Add(decision.RequestID{Target: g.Target, Nonce: o.In.Request.Nonce}, struct{}{})
		}
	}
}

// countStale makes the next batches pessimistic if too many of the remembered states were stale.
func (m *memory) countStale(now time.Time, stale int, b *decision.Batch) {
	if stale*staleAtMost > len(b.State.Remembered) {
		m.pessimisticUntil = now.Add(pessimisticFor)
	}
}
