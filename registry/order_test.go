package registry

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/streams"
)

// hold takes the next request as a replica does that is slow, and gives it back when it is told to.
func (w *world) hold(r request) (giveBack func()) {
	w.t.Helper()
	consumer, err := w.js.Consumer(w.t.Context(), streams.Requests, streams.RegistryDurable)
	if err != nil {
		w.t.Fatal(err)
	}
	msg, err := consumer.Next(jetstream.FetchMaxWait(patience))
	if err != nil || !bytes.Equal(msg.Data(), r.payload) {
		w.t.Fatalf("another one came: %v", err)
	}
	released, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond) // settledAll has made the wait for acknowledgements short
		defer tick.Stop()
		for {
			select {
			case <-released:
				_ = msg.Nak()
				return
			case <-tick.C:
				_ = msg.InProgress()
			}
		}
	}()
	return func() { close(released); <-done }
}

// publishCopy stores a request's bytes once more.
func (w *world) publishCopy(r request) {
	w.t.Helper()
	if _, err := w.js.Publish(w.t.Context(), r.draft.Subject(), r.payload); err != nil {
		w.t.Fatal(err)
	}
}

// TestLateCopy: a copy of a refused binding, stored before the revocation and decided after it, does not bring the service back. Nor
// does one that whoever captured it publishes then, though all was signed in one second. A new binding stands at once.
func TestLateCopy(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
		now := time.Now()
		d.now = func() time.Time { return now }
		stop := w.run()
		w.commit(d.bind())
		refused := d.sign(events.Binding, events.GenerateSigningKey(), d.master)
		w.publish(refused)
		w.answer(refused)
		w.settledAll()
		stop()
		w.publishCopy(refused)
		giveBack := w.hold(refused)
		revocation := d.revoke()
		w.publish(revocation)
		w.run()
		w.answer(revocation)
		giveBack()
		w.settledAll()
		if got := w.answersTo(refused); got != "already_bound out_of_order" {
			t.Errorf("the late copy: %s", got)
		}
		w.publishCopy(refused)
		w.settledAll()
		if got := w.answersTo(refused); got != "already_bound out_of_order timestamp_out_of_order" {
			t.Errorf("captured: %s", got)
		}
		w.commit(d.bind())
		w.clean()
	})
}

// TestResetsInTheOtherOrder: of two resets the later one stays, whichever is decided first, and however often the other one comes.
func TestResetsInTheOtherOrder(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
		stop := w.run()
		w.commit(d.bind())
		w.settledAll()
		stop()
		first, second := d.reset(), d.reset()
		w.publish(first)
		giveBack := w.hold(first)
		w.publish(second)
		w.run()
		if receipt := w.answer(second); receipt.Event != events.RequestCommitted {
			t.Fatalf("the second reset: %s %s", receipt.Reason, receipt.Detail)
		}
		giveBack()
		w.settledAll()
		w.publishCopy(first)
		w.settledAll()
		if got := w.answersTo(first); got != "out_of_order timestamp_out_of_order" {
			t.Errorf("the first reset: %s", got)
		}
		service, err := w.store.ledger.Service(t.Context(), d.target)
		if err != nil || service.Key != second.draft.NewKey.Public() {
			t.Errorf("the service does not have the second key: %v", err)
		}
		w.commit(d.rotate())
		w.clean()
	})
}

// TestStreamCreatedAgain: a stream that was created again counts from 1, and what it has is not taken for earlier. A dead letter of
// the one before is, by when it was signed.
func TestStreamCreatedAgain(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w, d, stop := boundWorld(t, url)
		d.now = func() time.Time { return time.Now().Add(-time.Second) }
		late := d.sign(events.Reset, events.GenerateSigningKey(), d.master)
		d.now = time.Now
		for range 5 {
			w.commit(d.reset())
		}
		stream, err := w.js.Stream(t.Context(), streams.Requests)
		if err != nil {
			t.Fatal(err)
		}
		created := stream.CachedInfo().Created.UnixNano()
		stop()
		if err := w.js.DeleteStream(t.Context(), streams.Requests); err != nil {
			t.Fatal(err)
		}
		w.run()
		w.commit(d.reset())
		letters := []string{"00", "01"}
		for i, stream := range []int64{created, 0} { // 0: from before it was kept
			l := ledger.DeadLetter{
				ID: letters[i], Subject: late.draft.Subject(), StreamSequence: 2, StreamCreatedAt: stream,
				StoredAt: late.draft.Timestamp, Reason: "error", Payload: late.payload,
			}
			if err := w.store.letters.Put(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range letters {
			if err := w.store.Admin().RetryDeadLetters(t.Context(), []string{id}, time.Now()); err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, patience, "it is decided", func() error {
				if _, err := w.store.Admin().DeadLetter(t.Context(), id); !errors.Is(err, ErrNoDeadLetter) {
					return fmt.Errorf("it is there: %w", err)
				}
				return nil
			})
		}
		if got := w.answersTo(late); got != "timestamp_out_of_order" {
			t.Errorf("dead letters: %s", got)
		}
		w.clean()
	})
}

// TestOrderAgainstRivals: the order is checked on the state that the commit is conditional on. Whoever loses is decided again.
func TestOrderAgainstRivals(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in, other := newTestIntake(t, store, Policy{Origin: testOrigin}, testNowTime), newTestIntake(t, store, Policy{Origin: testOrigin}, testNowTime)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		d.now = testNowTime
		at := func(sequence, storedAt int64, r request) []decision.Incoming {
			one := decision.NewIncoming(r.draft.Subject(), r.payload, storedAt, 0)
			one.Place = decision.Place{Stream: 7, Sequence: sequence}
			return []decision.Incoming{one}
		}
		decide := func(in *intake, todo []decision.Incoming) events.Reason {
			outcomes, err := decideAndCommit(t.Context(), in, todo)
			if err != nil {
				t.Fatal(err)
			}
			return outcomes[0].Reason
		}
		if reason := decide(in, at(10, testNow, d.bind())); reason != "" {
			t.Fatal(reason)
		}
		early := at(11, testNow, d.reset())
		b, err := decideBatch(t.Context(), in, early)
		if err != nil || !b.Groups[0].Changed() {
			t.Fatalf("it does not stand alone: %v", err)
		}
		if reason := decide(other, at(13, testNow, d.reset())); reason != "" {
			t.Fatal(reason)
		}
		lost, err := store.ledger.Commit(t.Context(), b.Groups, testNowTime())
		if err != nil || !lost.Services[d.target] {
			t.Fatalf("it was committed on another state: %v", err)
		}
		for _, c := range []struct {
			name     string
			sequence int64
			storedAt int64
			request  request
			want     events.Reason
		}{
			{"lost", 11, testNow, request{}, events.OutOfOrder},
			{"a rotation of before", 12, testNow, d.rotate(), ""},
			{"it has not moved the place back", 12, testNow, d.sign(events.Reset, events.GenerateSigningKey(), d.master), events.OutOfOrder},
			{"the last place that the window has", 12, testNow + 300, d.sign(events.Reset, events.GenerateSigningKey(), d.master), events.OutOfOrder},
			{"a place that a stream gives again", 12, testNow + 301, laterReset(d), ""},
			{"and goes on from there", 12, testNow + 302, laterReset(d), ""},
			{"a rotation", 20, testNow + 2, d.rotate(), ""},
			{"stored before the rotation", 19, testNow + 2, laterReset(d), events.OutOfOrder},
			{"signed earlier", 21, testNow + 2, d.reset(), events.TimestampOutOfOrder},
		} {
			todo := early
			if c.request.payload != nil {
				todo = at(c.sequence, c.storedAt, c.request)
			}
			if got := decide(in, todo); got != c.want {
				t.Errorf("%s: %q, want %q", c.name, got, c.want)
			}
		}
	})
}

// laterReset is signed some seconds later.
func laterReset(d *developer) request {
	defer func(was func() time.Time) { d.now = was }(d.now)
	d.now = func() time.Time { return time.Unix(testNow+5, 0) }
	return d.reset()
}
