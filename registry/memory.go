package registry

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"omiappreg.org/keyrotation/events"
)

const (
	rememberAtMost = 65_536 // services; some 450 bytes each
	rememberRecent = 64     // rotations of a minute; a service with more is not remembered
	// carefulFor is how long nothing is guessed after a guess was wrong that costs a batch, or nothing of a service of which it was
	// wrong: whoever sends used keys on purpose has one batch decided twice in that time.
	carefulFor      = time.Minute
	rememberRefused = 4096 // requests by the Master Key, until their receipts are in the stream and long after
	staleAtMost     = 8    // one in so many remembered states may be out of date; more are where replicas take turns with a service
)

// memory is what the registry believes without asking the database: in which state the services are that it committed a change
// of, and that nobody sends a key or a nonce that was used before. It is only a guess. Another replica may have moved a
// service, and a backup may have been restored. So what is decided on a guess is either committed by a compare-and-swap of
// all that was guessed, below the unique keys of the history, or read before it is answered (guess.go).
//
// Only whoever decides a batch uses it.
type memory struct {
	services *simplelru.LRU[events.Target, remembered]
	refused  *simplelru.LRU[requestID, struct{}]
	doubts   int // the fence's, when it was emptied

	careful time.Time // until then, everything is read before it is decided
}

// remembered is a service as it was left.
type remembered struct {
	service
	contested time.Time // until then it is not believed: somebody else moves it too
}

func newMemory() *memory {
	return &memory{services: newLRU[events.Target, remembered](rememberAtMost), refused: newLRU[requestID, struct{}](rememberRefused)}
}

func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	l, err := simplelru.NewLRU[K, V](size, nil)
	if err != nil {
		panic("registry: " + err.Error()) // it refuses no size but those below 1
	}
	return l
}

// wasRefused reports whether this replica has refused a request by the Master Key: its receipt may not be in the stream yet.
func (m *memory) wasRefused(id requestID) bool { return m.refused.Contains(id) }

// of returns the state that a service was in; nil: it is not known.
func (m *memory) of(t events.Target, now time.Time) *service {
	if one, ok := m.services.Get(t); ok && one.sequence > 0 && !now.Before(one.contested) {
		return &one.service
	}
	return nil
}

// put remembers a state.
func (m *memory) put(t events.Target, s *service) {
	if len(s.recent) > rememberRecent {
		m.services.Remove(t)
		return
	}
	one, _ := m.services.Peek(t)
	one.service = *s
	m.services.Add(t, one)
}

// contest forgets a state that was out of date, and believes none of this service for a while: who sends requests of one service to
// two replicas in turn would have each of their commits fail first. It reports whether the state was believed.
func (m *memory) contest(t events.Target, now time.Time) bool {
	believed := m.of(t, now) != nil
	m.services.Add(t, remembered{contested: now.Add(carefulFor)})
	return believed
}

// learn takes in what became of a commit: what was written is remembered, what was lost is not.
func (m *memory) learn(now time.Time, b *batch, l losses, err error) {
	stale := 0
	for _, g := range b.groups {
		if err == nil && !l.services[g.target] {
			m.learnRefused(g)
		}
		switch {
		case err != nil || l.taken && l.services[g.target]:
			m.services.Remove(g.target)
		case l.services[g.target]:
			if m.contest(g.target, now) && b.state.remembered[g.target] {
				stale++
			}
		case g.changed():
			m.put(g.target, &g.service)
		}
	}
	if err != nil || l.taken {
		m.careful = now.Add(carefulFor)
		return
	}
	m.judge(now, stale, b)
}

func (m *memory) learnRefused(g *group) {
	for i := range g.outcomes {
		if o := &g.outcomes[i]; o.verdict == rejected && o.in.request.Kind.ByMasterKey() {
			m.refused.Add(requestID{g.target, o.in.request.Nonce}, struct{}{})
		}
	}
}

// judge guesses nothing for a while if too much of what was remembered was out of date.
func (m *memory) judge(now time.Time, stale int, b *batch) {
	if stale*staleAtMost > len(b.state.remembered) {
		m.careful = now.Add(carefulFor)
	}
}
