package client_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestVerifierBrokerRestart: it goes on where it was, and misses nothing.
func TestVerifierBrokerRestart(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	s := subtest.NewService(t, "restart")
	w.publish(t, s.Bind(verifierStart))
	w.becomes(t, s, s.Keys[0], "accepted current")
	for range 3 {
		w.broker.Stop()
		w.broker.Start()
		w.publish(t, s.Rotate(verifierStart, 300))
		w.becomes(t, s, s.Current(), "accepted current")
	}
	testenv.Eventually(t, verifierWithin, "a consumer", func() error {
		list := w.consumers(t)
		for _, info := range list {
			if info.Config.OptStartSeq < 3 {
				t.Errorf("the stream is read again from %d on", info.Config.OptStartSeq)
			}
		}
		if len(list) == 0 {
			return errors.New("none")
		}
		return nil
	})
}

// TestVerifierAnotherStream: a stream that was made anew while the receiver was away is read from its start, whether
// it has fewer messages than the old one, as many, or more.
func TestVerifierAnotherStream(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]int{"empty": -1, "shorter": 0, "as long": 4, "longer": 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := runningVerifier(t)
			s := subtest.NewService(t, "first")
			w.publish(t, s.Bind(verifierStart))
			for range 4 {
				w.publish(t, s.Rotate(verifierStart, 300))
			}
			w.becomes(t, s, s.Current(), "accepted current")

			w.proxy.Cut()
			w.replaceStream(t)
			second := subtest.NewService(t, "second")
			if more >= 0 {
				w.publish(t, second.Bind(verifierStart))
			}
			for i := range more {
				w.publish(t, subtest.NewService(t, fmt.Sprint("more", i)).Bind(verifierStart))
			}
			w.clock.seconds.Store(verifierStart + 100)
			w.proxy.Restore()
			if more >= 0 {
				w.becomes(t, second, second.Keys[0], "accepted current")
			}
			w.becomes(t, s, s.Current(), "accepted current") // what was once known stays known
		})
	}
}

// TestVerifierStreamDeleted: the same, with the connection up.
func TestVerifierStreamDeleted(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	s := subtest.NewService(t, "first")
	w.publish(t, s.Bind(verifierStart))
	w.becomes(t, s, s.Keys[0], "accepted current")
	w.replaceStream(t)
	second := subtest.NewService(t, "second")
	w.publish(t, second.Bind(verifierStart))
	w.becomes(t, second, second.Keys[0], "accepted current")
	w.tick(t, verifierStart+100)
}

// TestVerifierCuts: whatever is lost with a connection comes again.
func TestVerifierCuts(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	list := make([]*subtest.Service, 1000)
	for i := range list {
		list[i] = subtest.NewService(t, fmt.Sprint("s", i))
		w.publish(t, list[i].Bind(verifierStart))
		switch i % 100 {
		case 50:
			w.proxy.Cut()
		case 60:
			w.proxy.Restore()
		}
	}
	w.tick(t, verifierStart+1)
	for _, s := range list {
		w.want(t, s.Target.String(), s, s.Keys[0], "accepted current")
	}
}

// TestVerifierLostMessage: a message that the broker has sent and that never came is missed, and fetched: at once if
// another comes after it, and else when the broker is asked. Here somebody else takes it from the receiver's consumer.
func TestVerifierLostMessage(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]int{"in the middle": 3, "at the end": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := runningVerifier(t)
			consumer, err := w.js.Consumer(t.Context(), streams.Invalidations, w.consumers(t)[0].Name)
			if err != nil {
				t.Fatal(err)
			}
			batch, err := consumer.Fetch(1, jetstream.FetchMaxWait(verifierWithin))
			if err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, verifierWithin, "two who pull", func() error {
				info, err := consumer.Info(t.Context())
				if err == nil && info.NumWaiting != 2 {
					err = fmt.Errorf("%d", info.NumWaiting)
				}
				return err
			})
			var list []*subtest.Service
			publish := func() {
				s := subtest.NewService(t, fmt.Sprint("s", len(list)))
				w.publish(t, s.Bind(verifierStart))
				list = append(list, s)
			}
			publish() // the broker serves one after the other
			publish()
			if lost := <-batch.Messages(); lost == nil {
				t.Fatalf("nothing was taken: %v", batch.Error())
			}
			for range more {
				publish()
			}
			for _, s := range list {
				w.becomes(t, s, s.Keys[0], "accepted current")
			}
		})
	}
}

// TestVerifierConnectionClosed: what never comes back is not waited for.
func TestVerifierConnectionClosed(t *testing.T) {
	t.Parallel()
	w := newVerifierWorld(t)
	subtest.Stream(t, w.js)
	conn := testenv.Connect(t, w.broker.URL())
	v, err := client.NewVerifier(client.VerifierConfig{Conn: conn, Trust: w.registry.Trust})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- v.Run(t.Context()) }()
	testenv.Eventually(t, verifierWithin, "ready", v.Ready)
	conn.Close()
	select {
	case err := <-done:
		if !errors.Is(err, nats.ErrConnectionClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(verifierWithin):
		t.Error("it still runs")
	}
}
