package registry

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
)

// TestPortions: requests that are handed over together, and decided while others of them are being committed, get the answers
// that one by one would, in the order of the stream, and the services end in the same state.
func TestPortions(t *testing.T) {
	t.Parallel()
	folder, n := t.TempDir(), 0
	side := 0 // how often something was decided beside a commit
	rapid.Check(t, func(rt *rapid.T) {
		n++
		one := openStore(t, "sqlite:"+filepath.Join(folder, fmt.Sprintf("one-%d.db", n)))
		many := openStore(t, "sqlite:"+filepath.Join(folder, fmt.Sprintf("many-%d.db", n)))
		d := newDeveloper(t, one, "org.omiappreg.alice", "s-0")
		d.now = func() time.Time { return time.Unix(testNow, 0) }
		if err := many.AddApp(t.Context(), App{d.target.App, d.master.Public()}, 1); err != nil {
			rt.Fatal(err)
		}
		log := traffic(rt, d)
		size := rapid.IntRange(1, 6).Draw(rt, "portion")
		answers1, state1 := process(t, one, log, 1)
		answersN, stateN := handled(t, many, log, size, &side)
		for i := range log {
			if answers1[i] != answersN[i] {
				rt.Fatalf("request %d: one by one %q, in portions of %d %q", i, answers1[i], size, answersN[i])
			}
		}
		if state1 != stateN {
			rt.Fatalf("states differ:\n%s\n%s", state1, stateN)
		}
		_, _ = one.Close(), many.Close()
	})
	if side == 0 {
		t.Error("nothing was ever decided beside a commit: this shows nothing")
	}
}

// handled hands all messages over at once, and returns the answers in order and the final state.
func handled(t *testing.T, store *Store, log []sent, size int, side *int) (answers []string, state string) {
	t.Helper()
	in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 12}, func() time.Time { return time.Unix(testNow, 0) })
	in.portion, in.committed = size, func([]events.Invalidation) {}
	in.relay = newRelay(nil, store, nil, testLog(t), in.metrics, in.now)
	var reading sync.WaitGroup
	for _, queue := range []chan publication{in.relay.queue, in.relay.answers} {
		reading.Go(func() {
			for range queue { // what the broker would get
			}
		})
	}
	messages := make([]*consume.Message, len(log))
	for i, m := range log {
		letter := DeadLetter{Subject: m.subject, Payload: m.payload, StoredAt: testNow}
		var err error
		if messages[i], err = consume.NewMessage(&letterMessage{letter: letter, settled: make(chan bool, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	answers = make([]string, len(log))
	w := &work{intake: in, messages: messages, todo: in.parse(messages)}
	for w.more() {
		before := w.writing
		if err := w.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if before == nil {
			continue
		}
		for _, g := range before.groups {
			for _, o := range g.outcomes {
				answers[o.in.index] += fmt.Sprint(o.verdict, o.reason, o.event.Sequence)
			}
		}
		if w.writing != nil {
			*side++
		}
	}
	in.relay.close()
	reading.Wait()
	return answers, states(t, store)
}
