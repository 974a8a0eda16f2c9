package subscriber_test

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// heir is a registry whose key changed: the old one, the new one, and a stranger with the same
// name.
type heir struct {
	*world
	old, next, stranger *subtest.Registry
	store               *storage.Store
}

func newHeir(t *testing.T, url string) *heir {
	t.Helper()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	return &heir{
		w, w.registry, subtest.NewRegistry(t, events.GenerateSigningKey()), subtest.NewRegistry(t, events.GenerateSigningKey()),
		openStore(t, url),
	}
}

func trusting(t *testing.T, registries ...*subtest.Registry) events.Trust {
	t.Helper()
	var keys []events.PublicKey
	for _, r := range registries {
		keys = append(keys, r.Key.Public())
	}
	trust, err := events.NewTrust(subtest.Origin, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// start runs a subscriber that trusts these, until the returned function stops it.
func (h *heir) start(t *testing.T, trusted ...*subtest.Registry) (sub *subscriber.Subscriber, stop func()) {
	t.Helper()
	return h.startWith(t, trusting(t, trusted...))
}

func (h *heir) startWith(t *testing.T, trust events.Trust) (sub *subscriber.Subscriber, stop func()) {
	t.Helper()
	sub, err := subscriber.New(subscriber.Config{
		JetStream: h.js, Durable: "sub", Trust: trust, Store: h.store, Log: slog.New(slog.NewTextHandler(h.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	stop = subtest.Running(t, sub.Run)
	testenv.Eventually(t, within, "the durable is there", func() error {
		_, err := h.js.Consumer(t.Context(), streams.Invalidations, "sub")
		return err
	})
	return sub, stop
}

// says waits until the durable says that it trusts these.
func (h *heir) says(t *testing.T, trusted ...*subtest.Registry) {
	t.Helper()
	want := strings.Join(trusting(t, trusted...).Announcement(), " ")
	testenv.Eventually(t, within, "the durable says whom it trusts", func() error {
		if got := h.consumer(t).Config.Metadata[events.TrustMetadata]; got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// aside is what the durable says about messages that were set aside.
func (h *heir) aside(t *testing.T) subscriber.SetAside {
	t.Helper()
	aside, _ := subscriber.SetAsideOf(h.consumer(t).Config.Metadata)
	return aside
}

// flood publishes more messages than are kept of a kind: a stranger's events, and messages that are
// none.
func (h *heir) flood(t *testing.T) {
	t.Helper()
	publish := func(subject string, payload []byte) {
		if _, err := h.js.PublishAsync(subject, payload); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 22 {
		s := subtest.NewService(t, fmt.Sprint("flood-", i))
		for n := range 50 {
			e := nth(s, n)
			publish(e.Subject(), e.Sign(h.stranger.Key))
			publish(fmt.Sprint(e.Subject(), "-", n), []byte("garbage"))
		}
	}
	<-h.js.PublishAsyncComplete()
}

// lacks checks that some event of a service was not applied.
func (h *heir) lacks(t *testing.T, s *subtest.Service) {
	t.Helper()
	h.allRead(t)
	if diffKeyrings(s.Keyring(), all(t, h.store)[s.Target].Keyring) == "" {
		t.Errorf("what was not believed of %s is applied", s.Target)
	}
}

func (h *heir) listed(t *testing.T, reason string) (places []uint64) {
	t.Helper()
	list, err := h.store.ListSetAside(t.Context(), 5000)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.Reason == reason {
			places = append(places, a.StreamSequence)
		}
	}
	return places
}

// TestTrustComesLater: the registry's key changes before the subscriber knows. Events that are set
// aside then don't count as applied. They are applied as soon as the subscriber trusts the new key,
// after a restart or while it runs, even if a flood of foreign messages has pushed them out of the
// table.
func TestTrustComesLater(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"restart", "running"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			testenv.EachEngine(t, func(t *testing.T, url string) {
				h := newHeir(t, url)
				sub, stop := h.start(t, h.old)
				a, b := subtest.NewService(t, "a"), subtest.NewService(t, "b")
				h.old.Publish(t, h.js, a.Bind(start))
				h.next.Publish(t, h.js, a.Rotate(start+10, 300)) // at 2
				h.flood(t)
				h.next.Publish(t, h.js, b.Bind(start))
				h.lacks(t, a)
				h.lacks(t, b)
				h.says(t, h.old)
				if got := h.aside(t); got.From != 2 {
					t.Errorf("the durable says %+v, want from 2", got)
				}
				if n := len(h.listed(t, "malformed_message")); n != 1000 {
					t.Errorf("%d pieces of garbage are kept, want 1000", n)
				}
				if way == "restart" {
					stop()
					sub, _ = h.start(t, h.old, h.next)
				} else {
					sub.SetTrust(trusting(t, h.old, h.next))
				}
				h.knows(t, h.store, a, b)
				h.says(t, h.old, h.next)
				if got := h.aside(t); got.Rereading || got.From != 3 {
					t.Errorf("the durable says %+v, want from 3: what the stranger sent", got)
				}
				listed := h.listed(t, "unknown_registry_key")
				if len(listed) < 999 || slices.Contains(listed, 2203) {
					t.Errorf("%d messages of unknown keys are listed, with 2203: %t", len(listed), slices.Contains(listed, 2203))
				}
				testenv.Eventually(t, within, "ready", sub.Ready)
			})
		})
	}
}

// TestTrustTakenBack: a subscriber that trusts less says so, believes no more of those events, and
// keeps what it applied.
func TestTrustTakenBack(t *testing.T) {
	t.Parallel()
	h := newHeir(t, testenv.Database(t, testenv.SQLite))
	sub, stop := h.start(t, h.old, h.next)
	a, b := subtest.NewService(t, "a"), subtest.NewService(t, "b")
	h.next.Publish(t, h.js, a.Bind(start))
	h.knows(t, h.store, a)
	h.says(t, h.old, h.next)
	sub.SetTrust(trusting(t, h.old))
	h.says(t, h.old)
	testenv.Eventually(t, within, "the trust is less", func() error {
		if len(sub.Trust().PublicKeys()) != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	h.next.Publish(t, h.js, b.Bind(start))
	h.lacks(t, b)
	h.knows(t, h.store, a)

	// The same at a start, and then more trust again.
	stop()
	_, stop = h.start(t, h.next)
	h.says(t, h.next)
	h.knows(t, h.store, a, b)
	stop()
	h.start(t, h.old)
	h.says(t, h.old)
}

// TestTrustAfterCrash: a durable whose process crashed while it read the stream again, and one
// whose metadata can't be read. What others keep in the metadata stays.
func TestTrustAfterCrash(t *testing.T) {
	t.Parallel()
	for name, metadata := range map[string]map[string]string{
		"crash":      {events.TrustMetadata: "", "omi-reread": "2"},
		"unreadable": {events.TrustMetadata: "", "omi-unbelieved": "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHeir(t, testenv.Database(t, testenv.SQLite))
			_, stop := h.start(t, h.old)
			a := subtest.NewService(t, "a")
			h.old.Publish(t, h.js, a.Bind(start))
			h.next.Publish(t, h.js, a.Rotate(start+10, 300))
			h.lacks(t, a)
			stop()
			config := h.consumer(t).Config
			for _, key := range []string{events.TrustMetadata, "omi-unbelieved"} {
				delete(config.Metadata, key)
			}
			maps.Copy(config.Metadata, metadata)
			config.Metadata["owner"] = "ops"
			if _, err := h.js.UpdateConsumer(t.Context(), streams.Invalidations, config); err != nil {
				t.Fatal(err)
			}
			h.start(t, h.old, h.next)
			h.knows(t, h.store, a)
			h.says(t, h.old, h.next)
			if got := h.aside(t); got != (subscriber.SetAside{}) {
				t.Errorf("the durable says %+v", got)
			}
			if got := h.consumer(t).Config.Metadata["owner"]; got != "ops" {
				t.Errorf("the owner is %q", got)
			}
			if list := h.listed(t, "unknown_registry_key"); len(list) > 0 {
				t.Errorf("still listed: %v", list)
			}
		})
	}
}

// TestSharedDurable: one of two processes on one durable and one database trusts more. An event
// that the other one gets does not count as applied before the first one has applied it.
func TestSharedDurable(t *testing.T) {
	t.Parallel()
	h := newHeir(t, testenv.Database(t, testenv.Postgres))
	h.start(t, h.old)
	h.start(t, h.old, h.next)
	h.says(t, h.old, h.next)
	var services []*subtest.Service
	for i := range 20 {
		s := subtest.NewService(t, fmt.Sprint("shared-", i))
		h.next.Publish(t, h.js, s.Bind(start))
		services = append(services, s)
	}
	h.knows(t, h.store, services...)
	h.says(t, h.old, h.next)
}

// TestRemarks: a person is told what is set aside and why, and so is a metric.
func TestRemarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	subtest.Running(t, w.sub.Run)
	if got := w.sub.Remarks(); got != "" {
		t.Errorf("at first: %q", got)
	}
	s := subtest.NewService(t, "a")
	subtest.NewRegistry(t, events.GenerateSigningKey()).Publish(t, w.js, s.Bind(start), s.Rotate(start+10, 300))
	w.garbage(t)
	testenv.Eventually(t, within, "remarks", func() error {
		got := w.sub.Remarks()
		if !strings.HasPrefix(got, "set aside, malformed_message: 1 (no events of this registry") ||
			!strings.Contains(got, "\nset aside, unknown_registry_key: 2 (events by a registry key that is not trusted: ") {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	counts := map[string]float64{}
	for _, m := range w.metric(t, "omi_subscriber_set_aside") {
		for _, label := range m.GetLabel() {
			if label.GetName() == "reason" {
				counts[label.GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	want := map[string]float64{"malformed_message": 1, "unknown_registry_key": 2, "ended_registry_key": 0, "panic": 0, "error": 0}
	if !maps.Equal(counts, want) {
		t.Errorf("the metric says %v, want %v", counts, want)
	}
}

// TestForgedByAStolenKey: an event that a key of the registry signs after its end is set aside, and
// does not count as applied, even if it ends a service's keys and is dated back. An end that turns
// out to be too early is corrected while the subscriber runs, and the events that were set aside
// are applied.
func TestForgedByAStolenKey(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		h := newHeir(t, url)
		end := time.Now().Add(time.Hour).Unix()
		until := func(place uint64) events.Trust {
			trust, err := events.NewTrustUntil(subtest.Origin, events.TrustedKey{PublicKey: h.next.Key.Public()},
				events.TrustedKey{PublicKey: h.old.Key.Public(), End: events.End{Time: end, Place: place}})
			if err != nil {
				t.Fatal(err)
			}
			return trust
		}
		announces := func(trust events.Trust) {
			t.Helper()
			want := strings.Join(trust.Announcement(), " ")
			testenv.Eventually(t, within, "the durable says whom it trusts", func() error {
				if got := h.consumer(t).Config.Metadata[events.TrustMetadata]; got != want {
					return fmt.Errorf("%q, want %q", got, want)
				}
				return nil
			})
		}
		a, b := subtest.NewService(t, "a"), subtest.NewService(t, "b")
		h.old.Publish(t, h.js, a.Bind(start), b.Bind(start)) // at 1 and 2
		honest := a.Keyring()
		h.old.Publish(t, h.js, a.Reset(start-1000), b.Rotate(start+10, 300)) // at 3 and 4
		sub, stop := h.startWith(t, until(2))
		defer stop()
		h.allRead(t)
		announces(until(2))
		if got := all(t, h.store)[a.Target].Keyring; diffKeyrings(honest, got) != "" {
			t.Errorf("the thief's event counts: %+v", got)
		}
		if places := h.listed(t, string(events.EndedRegistryKey)); !slices.Equal(places, []uint64{4, 3}) {
			t.Errorf("set aside are %v", places)
		}
		sub.SetTrust(until(4))
		announces(until(4))
		for _, s := range []*subtest.Service{a, b} {
			if diff := diffKeyrings(s.Keyring(), all(t, h.store)[s.Target].Keyring); diff != "" {
				t.Errorf("with a later end, %s: %s", s.Target, diff)
			}
		}
	})
}
