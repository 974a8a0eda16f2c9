package registry

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// newSmallWorld is a world whose broker has so many bytes for all streams.
func newSmallWorld(t *testing.T, store int64) *world {
	t.Helper()
	return newWorldOn(t, testenv.NewSmallBroker(t, store), testenv.Database(t, testenv.SQLite))
}

// flood publishes n messages to a subject, and returns how many the broker refused for lack of
// space.
func (w *world) flood(subject func(i int) string, payload []byte, n int) (refused int) {
	w.t.Helper()
	js, err := jetstream.New(testenv.Connect(w.t, w.broker.URL()), jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		w.t.Fatal(err)
	}
	sent := make([]jetstream.PubAckFuture, n)
	for i := range sent {
		if sent[i], err = js.PublishMsgAsync(&nats.Msg{Subject: subject(i), Data: payload}, jetstream.WithStallWait(patience)); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, one := range sent {
		select {
		case <-one.Ok():
		case err := <-one.Err():
			if !room.Lacks(err) {
				w.t.Fatal(err)
			}
			refused++
		}
	}
	return refused
}

func (w *world) state(stream string) jetstream.StreamState {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), stream)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.CachedInfo().State
}

// TestFloodOfLargeRequests: one service's account publishes more than the broker's store has, to
// its own subject. It ends at its own bound; another service is served meanwhile, and afterwards
// nothing is left of the flood.
func TestFloodOfLargeRequests(t *testing.T) {
	t.Parallel()
	const size, messages = 7000, 10_000
	w := newSmallWorld(t, 64<<20)
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "honest")
	w.run()
	if bound := d.bind(); w.committed(bound) != nil {
		t.Fatal("the honest service is not bound")
	}
	attacker := d.another("attacker")
	own := func(int) string { return events.RotationSubject + attacker.target.String() }
	payload := bytes.Repeat([]byte("x"), size)
	flooded := make(chan int)
	go func() { flooded <- w.flood(own, payload, messages) }()
	rotations, refused := 0, -1
	for refused < 0 || rotations < 3 {
		select {
		case refused = <-flooded:
		default:
		}
		if err := w.committed(d.rotate()); err != nil {
			t.Fatal(err)
		}
		rotations++
		if held := w.state(streams.Requests).Bytes; held > (streams.RequestsWaiting+10)*(size+1000) {
			t.Fatalf("requests take %d bytes", held)
		}
	}
	t.Logf("%d of %d were refused by the broker; %d rotations meanwhile", refused, messages, rotations)
	w.drained()
}

// committed sends a request, and waits for its receipt.
func (w *world) committed(r request) error {
	w.publish(r)
	if got := w.answer(r); got.Event != events.RequestCommitted {
		return fmt.Errorf("%+v", got)
	}
	return nil
}

// drained waits until no request is left.
func (w *world) drained() {
	w.t.Helper()
	testenv.Eventually(w.t, patience, "no request is left", func() error {
		if n := w.state(streams.Requests).Msgs; n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
}

// TestNoSpaceToPublish: the store is full, so no receipt and no event can be published. Refusals
// are dropped, so that their space comes free; what is committed waits, and is published as soon as
// there is room. Readiness says so meanwhile.
func TestNoSpaceToPublish(t *testing.T) {
	t.Parallel()
	const store, refusals = 8 << 20, 500
	w := newSmallWorld(t, store)
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "honest")
	stop := w.run()
	if err := w.committed(d.bind()); err != nil {
		t.Fatal(err)
	}
	stop()
	rotation := d.rotate()
	w.publish(rotation)
	for i := range refusals {
		service := d.another(fmt.Sprintf("s-%d", i%(refusals/10)))
		service.current = d.current
		w.publish(service.rotate()) // of a service that is not bound
	}
	filler, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "FILLER", Subjects: []string{"filler"}})
	if err != nil {
		t.Fatal(err)
	}
	if w.flood(func(int) string { return "filler" }, make([]byte, 64<<10), store>>16) == 0 {
		t.Fatal("the store is not full")
	}

	w.run()
	w.drained()
	if err := w.ready(); !errors.Is(err, ErrNoSpace) {
		t.Errorf("readiness says %v", err)
	}
	report, err := w.store.Admin().Check(t.Context(), &w.trust, d.now())
	if err != nil || report.Changes != 2 || report.Outbox != 1 {
		t.Errorf("%d changes, %d in the outbox: %v", report.Changes, report.Outbox, err)
	}
	if err := filler.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.answer(rotation); got.Event != events.RequestCommitted {
		t.Errorf("the answer is %+v", got)
	}
	if got := w.events(d.target); len(got) != 2 {
		t.Errorf("%d events", len(got))
	}
	testenv.Eventually(t, patience, "all is well", w.ready)
	w.clean()
}
