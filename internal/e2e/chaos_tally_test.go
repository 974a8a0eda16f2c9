package e2e_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
)

// tally holds what the developers were told against what the streams have.
type tally struct {
	services  int
	committed map[events.Nonce]map[events.Nonce]int // requests that stood, and their receipts
	refused   map[string]map[events.Nonce]int       // messages that did not, by hash, and their receipts
	resent    map[string]bool                       // messages of these that have several receipts
	events    map[events.Target]map[int64][]events.Nonce
	strange   []events.Receipt // that answer nothing that was sent

	again   int
	longest time.Duration

	lost, twice int
}

func newTally() *tally {
	return &tally{
		committed: map[events.Nonce]map[events.Nonce]int{}, refused: map[string]map[events.Nonce]int{},
		resent: map[string]bool{}, events: map[events.Target]map[int64][]events.Nonce{},
	}
}

func (y *tally) add(d *developer) {
	for nonce := range d.committed {
		y.committed[nonce] = map[events.Nonce]int{}
	}
	for hash := range d.refused {
		y.refused[hash] = map[events.Nonce]int{}
	}
	maps.Copy(y.resent, d.resent)
	y.services, y.again = y.services+len(d.services), y.again+d.again
	y.longest = max(y.longest, d.longest)
}

func (y *tally) receipt(r *events.Receipt) {
	receipts := y.refused[r.RequestHash]
	if r.Event == events.RequestCommitted {
		receipts = y.committed[r.RequestNonce]
	}
	if receipts == nil {
		y.strange = append(y.strange, *r)
		return
	}
	receipts[r.Nonce]++
}

func (y *tally) event(e *events.Invalidation) {
	published := y.events[e.Target]
	if published == nil {
		published = map[int64][]events.Nonce{}
		y.events[e.Target] = published
	}
	for _, nonce := range published[e.Sequence] {
		if nonce == e.Nonce {
			return // published again, after the two minutes in which JetStream knows it
		}
	}
	published[e.Sequence] = append(published[e.Sequence], e.Nonce)
}

// check fails the test for whatever was lost or happened twice.
func (y *tally) check(t *testing.T, services []*service) {
	t.Helper()
	for nonce, receipts := range y.committed {
		switch {
		case len(receipts) == 0:
			y.lost++
			t.Errorf("request %s has no receipt", nonce)
		case len(receipts) > 1:
			y.twice++
			t.Errorf("request %s has %d receipts: it was committed more than once", nonce, len(receipts))
		}
	}
	for hash, receipts := range y.refused {
		switch {
		case len(receipts) == 0:
			y.lost++
			t.Errorf("the refused message with the hash %s has no receipt", hash)
		case len(receipts) > 1 && !y.resent[hash]:
			y.twice++
			t.Errorf("the refused message with the hash %s, which was sent once, has %d receipts", hash, len(receipts))
		}
	}
	for _, r := range y.strange {
		t.Errorf("this receipt answers nothing that was sent: %+v", r)
	}
	for _, s := range services {
		s.checkEvents(t, y.events[s.target])
		delete(y.events, s.target)
	}
	for target := range y.events {
		t.Errorf("there are events of %s, which nobody bound", target)
	}
}

// String is the lower half of the table.
func (y *tally) String() string {
	refusedAgain := 0
	for _, receipts := range y.refused {
		refusedAgain += max(0, len(receipts)-1)
	}
	return fmt.Sprintf(`  ------------------------------
  services                       %d
  requests                       %d
    committed                    %d
    refused                      %d
    sent again                   %d
  refusals given again           %d
  longest wait for an answer     %v
  lost                           %d
  twice                          %d
`, y.services, len(y.committed)+len(y.refused), len(y.committed), len(y.refused), y.again, refusedAgain,
		y.longest.Round(time.Millisecond), y.lost, y.twice)
}
