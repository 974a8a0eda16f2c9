package authsub_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const (
	start  = int64(1_705_412_600)
	within = time.Minute
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// TestIdentity: an event whose nonce and timestamp were applied, and which says something else, counts neither before a restart
// nor after it.
func TestIdentity(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		s, other := subtest.NewService(t, "s"), subtest.NewService(t, "other")
		s.Bind(start)
		w.registry.Publish(t, w.js, s.Events...)
		w.current(t, s)
		key := events.GenerateSigningKey()
		forged := s.Events[0]
		forged.NewKey, forged.Sequence = key.Public(), 2
		if _, err := w.js.Publish(t.Context(), forged.Subject(), forged.Sign(w.registry.Key)); err != nil {
			t.Fatal(err)
		}
		other.Bind(start)
		w.registry.Publish(t, w.js, other.Events...)
		w.current(t, other)
		w.want(t, "the key of another event", s, key, "refused invalid_signature")
		w.want(t, "the key of the event", s, s.Current(), "accepted current")
		w.stop()
		w.run(t)
		w.want(t, "after a restart, the key of another event", s, key, "refused invalid_signature")
		w.want(t, "after a restart, the key of the event", s, s.Current(), "accepted current")
	})
}

// TestExpiredLongAgo: a key that ended so long ago that the memory has forgotten it is known as one that the service had, as long
// as that is not asked for very often.
func TestExpiredLongAgo(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		s := subtest.NewService(t, "old")
		s.Bind(start)
		for i := range 12 {
			s.Rotate(start+int64(i), 0)
		}
		w.clock.seconds.Store(start + 20)
		w.registry.Publish(t, w.js, s.Events...)
		w.current(t, s)
		w.clock.seconds.Store(start + 21) // what was asked before the events had come costs as well
		for i, key := range s.Keys[:12] {
			w.want(t, fmt.Sprintf("key %d", i), s, key, "refused expired_key")
		}
		w.want(t, "nobody's key", s, events.GenerateSigningKey(), "refused invalid_signature")
		for range 1024/16 - 5 { // and five were asked for above
			w.want(t, "the first key", s, s.Keys[0], "refused expired_key")
		}
		w.want(t, "the first key, once too often", s, s.Keys[0], "refused invalid_signature")
		w.want(t, "a key that is remembered", s, s.Keys[8], "refused expired_key")
		w.clock.seconds.Store(start + 22)
		w.want(t, "the first key, a second later", s, s.Keys[0], "refused expired_key")
	})
}

// TestGraceAndReset is the life of a service's keys, as its signatures meet it; and after a restart it is the same.
func TestGraceAndReset(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		s := subtest.NewService(t, "life")
		s.Bind(start)
		s.Rotate(start+10, 300)
		w.clock.seconds.Store(start + 10)
		w.registry.Publish(t, w.js, s.Events...)
		w.current(t, s)
		answer := w.auth.Verify(t.Context(), query(s, s.Keys[0]))
		if answer.Key != events.KeyGrace || answer.Expires != start+310 || answer.Sequence != 2 {
			t.Errorf("a key in grace: %+v", answer)
		}
		w.clock.seconds.Store(start + 309)
		w.want(t, "the last second of grace", s, s.Keys[0], "accepted grace")
		w.clock.seconds.Store(start + 310)
		w.want(t, "the end of grace", s, s.Keys[0], "refused expired_key")
		w.want(t, "the current key", s, s.Keys[1], "accepted current")

		s.Rotate(start+400, 300)
		s.Reset(start + 410)
		w.clock.seconds.Store(start + 410)
		w.registry.Publish(t, w.js, s.Events[2:]...)
		w.current(t, s)
		w.want(t, "the key before a reset", s, s.Keys[2], "refused expired_key")
		w.want(t, "a key in grace at a reset", s, s.Keys[1], "refused expired_key")
		w.want(t, "a stranger's key", s, events.GenerateSigningKey(), "refused invalid_signature")

		w.stop()
		w.run(t)
		w.want(t, "after a restart, the current key", s, s.Keys[3], "accepted current")
		w.want(t, "after a restart, an ended key", s, s.Keys[1], "refused expired_key")

		s.Revoke(start + 500)
		w.clock.seconds.Store(start + 500)
		w.registry.Publish(t, w.js, s.Events[4])
		testenv.Eventually(t, within, "revoked", func() error {
			if got := w.verify(t, s, s.Keys[3]); got != "refused revoked_service" {
				return errors.New(got)
			}
			return nil
		})
		w.want(t, "a stranger's key after a revocation", s, events.GenerateSigningKey(), "refused revoked_service")
		s.Bind(start + 600)
		w.clock.seconds.Store(start + 600)
		w.registry.Publish(t, w.js, s.Events[5])
		w.current(t, s)
		w.want(t, "a key before the revocation", s, s.Keys[3], "refused expired_key")
	})
}

// TestSameStreamTwice: a durable that is made anew delivers all again, and nothing changes, in memory nor on disk.
func TestSameStreamTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	s := subtest.NewService(t, "twice")
	s.Bind(start)
	for i := range int64(20) {
		s.Rotate(start+10*i, 300)
	}
	s.Reset(start + 300)
	s.Rotate(start+400, 300)
	w.clock.seconds.Store(start + 500)
	w.registry.Publish(t, w.js, s.Events...)
	w.current(t, s)
	before := make([]string, len(s.Keys))
	for i, key := range s.Keys {
		before[i] = w.verify(t, s, key)
	}
	if err := w.js.DeleteConsumer(t.Context(), streams.Invalidations, authDurable); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, within, "all delivered again", func() error {
		consumer, err := w.js.Consumer(t.Context(), streams.Invalidations, authDurable)
		if err != nil {
			return err
		}
		if floor := consumer.CachedInfo().AckFloor.Stream; floor != uint64(len(s.Events)) {
			return fmt.Errorf("acknowledged up to %d", floor)
		}
		return nil
	})
	for restarted := range 2 {
		for i, key := range s.Keys {
			if after := w.verify(t, s, key); after != before[i] {
				t.Errorf("key %d of %d: was %s, is %s", i, len(s.Keys), before[i], after)
			}
		}
		if restarted == 0 {
			w.stop()
			w.run(t)
		}
	}
}

// TestQuickerThanItsEvent: the registry's record speaks for a key whose event has not come, and never for an older one.
func TestQuickerThanItsEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	s := subtest.NewService(t, "quick")
	s.Bind(start)
	w.lookups.set(s.Record(start))
	answer := w.auth.Verify(t.Context(), query(s, s.Keys[0]))
	if answer.Key != events.KeyCurrent || answer.Sequence != 1 {
		t.Errorf("a service whose binding has not come: %+v", answer)
	}
	w.want(t, "a stranger's key", s, events.GenerateSigningKey(), "refused invalid_signature")
	w.want(t, "a service that nobody knows", subtest.NewService(t, "nobody"), s.Keys[0], "refused unknown_service")

	older := s.Record(start)
	w.registry.Publish(t, w.js, s.Events...)
	s.Rotate(start+1, 300)
	w.clock.seconds.Store(start + 10) // the memory of the first lookup is over
	w.lookups.set(s.Record(start + 10))
	w.want(t, "a rotation that has not come", s, s.Keys[1], "accepted current")

	w.registry.Publish(t, w.js, s.Events[1], s.Reset(start+11))
	w.current(t, s)
	w.clock.seconds.Store(start + 20)
	w.lookups.set(older)
	w.want(t, "an old record must revive nothing", s, s.Keys[0], "refused expired_key")
	w.clock.seconds.Store(start + 30)
	unseen := events.GenerateSigningKey()
	older.Current.PublicKey = unseen.Public()
	w.lookups.set(older)
	w.want(t, "nor bring a key", s, unseen, "refused invalid_signature")
}

// TestRebound: a service that was revoked and is bound again may be quicker than its event too.
func TestRebound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	s := subtest.NewService(t, "rebound")
	w.clock.seconds.Store(start + 5)
	w.registry.Publish(t, w.js, s.Bind(start), s.Revoke(start+1))
	testenv.Eventually(t, within, "revoked", func() error {
		if got := w.verify(t, s, s.Keys[0]); got != "refused revoked_service" {
			return errors.New(got)
		}
		return nil
	})
	s.Bind(start + 2)
	w.lookups.set(s.Record(start + 10))
	w.clock.seconds.Store(start + 10)
	w.want(t, "the new key", s, s.Current(), "accepted current")
}

// TestGraceAcrossAGap: the event that gave a key its grace is missing, the registry's record names it.
func TestGraceAcrossAGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	s := subtest.NewService(t, "gap")
	s.Bind(start)
	s.Rotate(start+1, 300)
	s.Rotate(start+2, 300)
	w.registry.Publish(t, w.js, s.Events[0], s.Events[2])
	w.current(t, s)
	w.want(t, "a key whose end is not known", s, s.Keys[0], "refused expired_key")
	w.clock.seconds.Store(start + 10)
	w.lookups.set(s.Record(start + 10))
	w.want(t, "the same, when the registry knows", s, s.Keys[0], "accepted grace")
	w.clock.seconds.Store(start + 400)
	w.lookups.set(s.Record(start + 400))
	w.want(t, "the same, when its grace is over", s, s.Keys[0], "refused expired_key")
}

func TestFloodOfGarbage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	s := subtest.NewService(t, "flood")
	garbage := query(s, events.GenerateSigningKey())
	flood := func(n int) {
		var running sync.WaitGroup
		for range n {
			running.Go(func() { w.auth.Verify(context.Background(), garbage) })
		}
		running.Wait()
	}
	flood(500)
	if n := w.lookups.count(); n != 1 {
		t.Errorf("%d lookups for one service in one second, want 1", n)
	}
	w.clock.seconds.Add(1)
	flood(500)
	if n := w.lookups.count(); n != 2 {
		t.Errorf("%d lookups in two seconds, want 2", n)
	}

	// Many services at once, while the registry does not answer: a few lookups are open, the rest don't wait.
	block := make(chan struct{})
	w.lookups.mu.Lock()
	w.lookups.block, w.lookups.asked = block, 0
	w.lookups.mu.Unlock()
	var waiting sync.WaitGroup
	for i := range 32 {
		q := garbage
		q.Target = subtest.NewService(t, fmt.Sprint("open", i)).Target
		waiting.Go(func() { w.auth.Verify(context.Background(), q) })
	}
	testenv.Eventually(t, within, "32 lookups in flight", func() error {
		if n := w.lookups.count(); n != 32 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	for i := range 100 {
		q := garbage
		q.Target = subtest.NewService(t, fmt.Sprint("more", i)).Target
		if answer := w.auth.Verify(t.Context(), q); answer.Reason != string(events.UnknownService) {
			t.Fatalf("got %+v", answer)
		}
	}
	if n := w.lookups.count(); n != 32 {
		t.Errorf("%d lookups", n)
	}
	close(block)
	waiting.Wait()
}

// TestVerifyBesideRotations is for the race detector: readers see whole states only, and never a gap between two keys.
func TestVerifyBesideRotations(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	s := subtest.NewService(t, "beside")
	w.registry.Publish(t, w.js, s.Bind(start))
	w.current(t, s)
	steady := query(s, s.Keys[0])
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for ctx.Err() == nil {
				if answer := w.auth.Verify(ctx, steady); answer.Result != events.Accepted {
					t.Errorf("refused between two events: %+v", answer)
					return
				}
			}
		})
	}
	for i := range 50 {
		other := subtest.NewService(t, fmt.Sprint("other", i))
		w.registry.Publish(t, w.js, s.Rotate(start, 300), other.Bind(start)) // all in grace together
	}
	w.current(t, s)
	cancel()
	running.Wait()
}

func TestReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	testenv.Eventually(t, within, "ready", w.auth.Ready)
	answer := w.auth.Verify(t.Context(), query(subtest.NewService(t, "nobody"), events.GenerateSigningKey()))
	if answer.AsOf < start {
		t.Errorf("as of %d, though it is ready", answer.AsOf)
	}
}
