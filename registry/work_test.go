package registry

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
)

// handled hands all messages over at once, to be decided in portions, one while the other is committed. It returns the answers
// in order and the final state, and counts how often something was decided beside a commit.
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
			if before.lost.services[g.target] {
				continue
			}
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
