package registry

import (
	"fmt"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/queue"
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
	most := queue.GarbageBurst + int(queue.GarbageAnswers*time.Since(began).Seconds()) + 1
	t.Logf("%d rotations meanwhile; %d were answered", rotations, answered)
	if answered > most || answered == 0 {
		t.Errorf("%d of %d are answered, want %d at most", answered, messages, most)
	}
}
