package registry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

// refusable is a request that is refused, and has a nonce by which it could be answered.
const refusable = `{"version":"1.0","data":{"nonce":"aaaaaaaaaa"},"signature":""}`

// TestInventedNames: a developer's account floods names that no service has, at a broker with a
// small store. What is answered of it is bounded, nothing is left of it, and services are served
// meanwhile. An honest mistake is answered.
func TestInventedNames(t *testing.T) {
	t.Parallel()
	const messages = 20_000
	w := newSmallWorld(t, 64<<20)
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "honest")
	w.run()
	if err := w.committed(d.bind()); err != nil {
		t.Fatal(err)
	}
	typo := d.another("hones")
	typo.current = d.current
	mistake := typo.rotate()
	w.publish(mistake)
	if got := w.answer(mistake); got.Reason != events.UnknownService {
		t.Errorf("the mistake is answered by %+v", got)
	}
	before, began := w.state(streams.Receipts).LastSeq, time.Now()
	flooded := make(chan int)
	go func() {
		flooded <- w.flood(func(i int) string {
			return fmt.Sprintf("%sorg.omiappreg.alice.s%d", []string{events.RotationSubject, events.BindingSubject}[i%2], i)
		}, []byte(refusable), messages)
	}()
	rotations := 0
	for done := false; !done; rotations++ {
		select {
		case refused := <-flooded:
			done = true
			t.Logf("%d of %d were refused by the broker", refused, messages)
		default:
		}
		if err := w.committed(d.rotate()); err != nil {
			t.Fatal(err)
		}
	}
	w.drained()
	answered := int(w.state(streams.Receipts).LastSeq-before) - rotations
	most := GarbageBurst + int(GarbageAnswers*time.Since(began).Seconds()) + 1
	t.Logf("%d rotations meanwhile; %d were answered", rotations, answered)
	if answered > most || answered == 0 {
		t.Errorf("%d of %d are answered, want %d at most", answered, messages, most)
	}
}

// TestTurnsStrangers: what is for names that are not bound shares one lane and one budget. Bound
// services have lanes of their own, and so has what an app's Master Key binds, with what was sent right behind the binding.
func TestTurnsStrangers(t *testing.T) {
	t.Parallel()
	const budget, strangers, bindings = 10, 200, 40
	l := newLine(t, time.Hour)
	intake := newTestIntake(t, l.world.store, Policy{Origin: testOrigin}, time.Now)
	for _, name := range []string{"busy", "bound"} {
		r := l.another(name).bind()
		if _, err := decideAndCommit(t.Context(), intake, []decision.Incoming{decision.NewIncoming(r.draft.Subject(), r.payload, time.Now().Unix(), 0)}); err != nil {
			t.Fatal(err)
		}
	}
	busy := l.put("busy", sortFrom+inHandEach) // fills the line, so that the rest is sorted
	for i := range strangers {
		l.put(fmt.Sprintf("s-%d", i), 1)
	}
	for i := range bindings {
		b := l.another(fmt.Sprintf("b-%d", i)).bind()
		l.store(b.draft.Subject(), string(b.payload))
		l.put(fmt.Sprintf("b-%d", i), 1)
	}
	own := l.put("bound", 3)
	turns := l.turnsOf(budget, l.world.store.bound)
	testenv.Eventually(t, patience, "all is sorted", func() error {
		if n := count(t, l.results.WithLabelValues("", unanswered)); n != strangers-budget {
			return fmt.Errorf("%v of %d are dropped", n, strangers-budget)
		}
		return nil
	})
	taken := l.take(turns, inHandEach+3+budget+2*bindings)
	bound := 0
	for subject := range taken {
		if strings.HasPrefix(subject, events.BindingSubject) {
			bound++
		}
	}
	if len(taken[own]) != 3 || len(taken[busy]) != inHandEach || bound != bindings || len(taken) != 2+2*bindings+budget {
		t.Errorf("%d of the bound service, %d of the busy one, %d bindings; of %d services", len(taken[own]), len(taken[busy]), bound, len(taken))
	}
}
