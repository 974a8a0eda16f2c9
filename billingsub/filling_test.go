package billingsub_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// longService returns a service with so many keys, all but the last of which ended long ago.
func longService(t *testing.T, keys int) *subtest.Service {
	t.Helper()
	s := subtest.NewService(t, "long")
	s.Bind(start)
	for i := 1; i < keys; i++ {
		s.Reset(start + int64(i))
	}
	return s
}

// historyOf returns what the registry tells long afterwards of a service that was reset every second.
func historyOf(s *subtest.Service) events.ServiceHistory {
	h := events.ServiceHistory{
		Origin: subtest.Origin, AppID: s.Target.App, ServiceID: s.Target.Service,
		Sequence: int64(len(s.Events)), Timestamp: start + 1_000_000,
	}
	for _, e := range s.Events {
		line := events.HistoryKey{PublicKey: e.NewKey, Event: e.Event, Sequence: e.Sequence, From: e.Timestamp}
		if e.Sequence < h.Sequence {
			line.Until = new(e.Timestamp + 1)
		}
		h.Keys = append(h.Keys, line)
	}
	return h
}

// TestKeyBesideAGap: a gap that can't be filled keeps no answer back. Whose key it is, the registry is asked about the key itself;
// and only where it does not say, the caller is told to try again.
func TestKeyBesideAGap(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		s := longService(t, 100)
		w.registry.Publish(t, w.js, s.Events[36:]...) // what the stream keeps
		w.caughtUp(t)
		stranger := events.GenerateSigningKey()
		stop := w.serveKeys(t, events.GenerateSigningKey(), s)
		for name, key := range map[string]events.SigningKey{"of a stranger": stranger, "in the gap": s.Keys[3], "at its edge": s.Keys[35]} {
			if answer, err := w.billing.Attribute(t.Context(), events.AttributeQuery{PublicKey: key.Public(), At: start}); err == nil {
				t.Errorf("nobody that is trusted was asked about a key %s: %+v", name, answer)
			}
		}
		stop()
		w.serveKeys(t, w.registry.Key, s)
		if answer := w.ask(t, stranger, start); answer.Reason != events.UnknownKey {
			t.Errorf("a stranger's key: %+v", answer)
		}
		for _, i := range []int64{0, 3, 35, 98} {
			w.owns(t, s, s.Keys[i], start+i, start+i+1)
		}
		w.owns(t, s, s.Current(), start+99, 0)
	})
}

// TestFilledInParts: a history that is told in parts is kept as it comes. A Billing Service that is stopped in the middle, whose
// registry goes away, goes on where it was, and the whole is told once.
func TestFilledInParts(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		s := longService(t, events.HistoryPart+500)
		history := historyOf(s)
		var mu sync.Mutex
		var asked []int64 // after which sequence
		away, declined := true, 0
		w.serve(t, events.LookupHistorySubject+s.Target.String(), func(question []byte) ([]byte, error) {
			q, err := events.ParseHistoryQuery(question)
			mu.Lock()
			defer mu.Unlock()
			if away && q.After > 0 {
				declined++
				return nil, err
			}
			asked = append(asked, q.After)
			return subtest.Part(history, q).Sign(w.registry.Key), err
		})
		w.registry.Publish(t, w.js, s.Events[len(s.Events)-64:]...)
		w.caughtUp(t)
		testenv.Eventually(t, within, "the first part is told and kept", func() error {
			mu.Lock()
			defer mu.Unlock()
			if declined == 0 {
				return errors.New("the second one is not asked for")
			}
			return nil
		})
		w.stop()
		mu.Lock()
		away = false
		mu.Unlock()
		w.starts(t, url)
		w.serveKeys(t, events.GenerateSigningKey()) // whom nobody believes: what is not filled is a 503
		testenv.Eventually(t, within, "the gap is filled", func() error {
			_, err := w.billing.Attribute(t.Context(), events.AttributeQuery{PublicKey: events.GenerateSigningKey().Public(), At: start})
			return err
		})
		for _, i := range []int64{0, 1, 2047, 2048, 2546} {
			w.owns(t, s, s.Keys[i], start+i, start+i+1)
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(asked, []int64{0, events.HistoryPart}) {
			t.Errorf("the parts after %v were told", asked)
		}
	})
}
