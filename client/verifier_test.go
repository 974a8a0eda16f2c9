package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestVerifierFollows is the life of a service's keys, as a receiver sees it.
func TestVerifierFollows(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	s := subtest.NewService(t, "life")
	w.publish(t, s.Bind(verifierStart), s.Rotate(verifierStart+10, 300))
	w.tick(t, verifierStart+10)
	w.becomes(t, s, s.Keys[1], "accepted current")
	answer, err := w.verifier.Verify(t.Context(), signedQuery(s, s.Keys[0]))
	want := events.VerifyAnswer{
		Result: events.Accepted, Key: events.KeyGrace, PublicKey: s.Keys[0].Public(), Expires: verifierStart + 310,
		Sequence: 2, AsOf: verifierStart + 10,
	}
	if err != nil || answer != want {
		t.Errorf("a key in grace: %+v, %v", answer, err)
	}
	w.tick(t, verifierStart+309)
	w.want(t, "the last second of grace", s, s.Keys[0], "accepted grace")
	w.tick(t, verifierStart+310)
	w.want(t, "the end of grace", s, s.Keys[0], "refused expired_key")
	w.want(t, "a stranger's key", s, events.GenerateSigningKey(), "refused invalid_signature")
	w.want(t, "a stranger", subtest.NewService(t, "nobody"), s.Keys[0], "refused unknown_service")

	w.publish(t, s.Rotate(verifierStart+310, 300), s.Reset(verifierStart+310))
	w.becomes(t, s, s.Keys[3], "accepted current")
	w.want(t, "the key before a reset", s, s.Keys[2], "refused expired_key")
	w.want(t, "a key in grace at a reset", s, s.Keys[1], "refused expired_key")
	w.publish(t, s.Revoke(verifierStart+310))
	w.becomes(t, s, s.Keys[3], "refused revoked_service")
	w.publish(t, s.Bind(verifierStart+310))
	w.becomes(t, s, s.Keys[4], "accepted current")
	w.want(t, "a key before the revocation", s, s.Keys[3], "refused expired_key")

	for _, info := range w.consumers(t) {
		if info.Config.Durable != "" || info.Config.AckPolicy != jetstream.AckNonePolicy || info.Config.InactiveThreshold == 0 {
			t.Errorf("it leaves a consumer behind: %+v", info.Config)
		}
	}
}

// TestVerifierNotReady: nobody is refused for what has not been read yet.
func TestVerifierNotReady(t *testing.T) {
	t.Parallel()
	w := newVerifierWorld(t)
	s := subtest.NewService(t, "early")
	s.Bind(verifierStart)
	w.want(t, "before it runs", s, s.Keys[0], "not ready")
	subtest.Running(t, w.verifier.Run)
	testenv.Eventually(t, verifierWithin, "the log says what is waited for", func() error {
		if w.log.Count("waiting for the stream OMI_INVALIDATIONS; the registry makes it") != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	w.want(t, "while there is no stream", s, s.Keys[0], "not ready")
	if err := w.verifier.Ready(); !errors.Is(err, client.ErrNotReady) || !w.verifier.AsOf().IsZero() {
		t.Errorf("%v, as of %v", err, w.verifier.AsOf())
	}
	subtest.Stream(t, w.js)
	w.publish(t, s.Events...)
	w.becomes(t, s, s.Keys[0], "accepted current")
	if err := w.verifier.Ready(); err != nil {
		t.Error(err)
	}
}

// TestVerifierReadsAllBeforeItAnswers: an old key is not good for a moment while the stream is read.
func TestVerifierReadsAllBeforeItAnswers(t *testing.T) {
	t.Parallel()
	w := newVerifierWorld(t)
	subtest.Stream(t, w.js)
	s := subtest.NewService(t, "old")
	w.publish(t, s.Bind(verifierStart))
	for i := range 600 { // more than two batches
		other := subtest.NewService(t, fmt.Sprint("s", i))
		w.publish(t, other.Bind(verifierStart))
	}
	w.publish(t, s.Reset(verifierStart))
	subtest.Running(t, w.verifier.Run)
	testenv.Eventually(t, verifierWithin, "an answer", func() error {
		switch got := w.verify(t, s, s.Keys[0]); got {
		case "refused expired_key":
			return nil
		case "not ready":
			return errors.New(got)
		default:
			t.Fatalf("a key that was reset long ago: %s", got)
			return nil
		}
	})
}

// TestVerifierStale: what is known is answered from until it is too old, and a refusal for want of a key needs more.
func TestVerifierStale(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	s := subtest.NewService(t, "stale")
	w.publish(t, s.Bind(verifierStart))
	w.becomes(t, s, s.Keys[0], "accepted current")
	stranger := events.GenerateSigningKey()
	w.want(t, "a stranger's key, while no registry answers", s, stranger, "refused invalid_signature")

	w.broker.Stop()
	before := w.verifier.AsOf().Unix()
	w.clock.seconds.Store(before + 5)
	w.want(t, "a stranger's key, a moment after the broker has gone", s, stranger, "refused invalid_signature")
	w.clock.seconds.Store(before + 6)
	w.want(t, "a stranger's key, while nobody can tell of a newer one", s, stranger, "stale")
	w.want(t, "the current key", s, s.Keys[0], "accepted current")
	w.clock.seconds.Store(before + 60)
	w.want(t, "the current key, for as long as it may be believed", s, s.Keys[0], "accepted current")
	w.clock.seconds.Store(before + 61)
	w.want(t, "and no longer", s, s.Keys[0], "stale")
	if asOf := w.verifier.AsOf().Unix(); asOf != before {
		t.Errorf("as of %d went to %d without a broker", before, asOf)
	}
	if err := w.verifier.Ready(); err != nil {
		t.Error(err)
	}

	w.broker.Start()
	w.publish(t, s.Rotate(before+61, 300))
	w.becomes(t, s, s.Keys[1], "accepted current")
}

// TestVerifierUnsigned: whoever may answer in the registry's place can say that a service was never bound. A receiver that can't
// read the stream takes that for an answer only if the registry has signed it.
func TestVerifierUnsigned(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	registry := w.answering(t)
	signed := registry.neverBound
	registry.neverBound = func(events.Target) []byte { return nil }
	if err := w.js.DeleteStream(t.Context(), streams.Invalidations); err != nil {
		t.Fatal(err)
	}
	w.clock.seconds.Store(verifierStart + 6)
	s := subtest.NewService(t, "new")
	s.Bind(verifierStart)
	w.want(t, "a service that somebody says was never bound", s, s.Keys[0], "stale")
	w.clock.seconds.Store(verifierStart + 8) // what was answered is forgotten
	registry.mu.Lock()
	registry.neverBound = signed
	registry.mu.Unlock()
	w.becomes(t, s, s.Keys[0], "refused unknown_service") // stale while nothing answers in time
}

// TestVerifierPeers: only the peers' events are read, and nobody else is known.
func TestVerifierPeers(t *testing.T) {
	t.Parallel()
	a, b, other := subtest.NewService(t, "a"), subtest.NewService(t, "b"), subtest.NewService(t, "other")
	w := newVerifierWorld(t, a, b, a)
	registry := w.answering(t)
	other.Bind(verifierStart)
	registry.set(other.Record(verifierStart))
	w.want(t, "a stranger, at once", other, other.Keys[0], "refused unknown_service")
	subtest.Stream(t, w.js)
	subtest.Running(t, w.verifier.Run)
	w.publish(t, other.Events[0], a.Bind(verifierStart), b.Bind(verifierStart))
	w.becomes(t, a, a.Keys[0], "accepted current")
	w.becomes(t, b, b.Keys[0], "accepted current")
	before := registry.count()
	w.want(t, "a stranger whom the registry knows", other, other.Keys[0], "refused unknown_service")
	if n := registry.count(); n != before {
		t.Errorf("%d questions about a stranger", n-before)
	}
	var delivered uint64
	for _, info := range w.consumers(t) {
		delivered += info.Delivered.Consumer
	}
	if delivered != 2 {
		t.Errorf("%d events read, want 2", delivered)
	}
}

// TestVerifierIgnores: what is not to be believed is counted and logged, and changes nothing.
func TestVerifierIgnores(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	s := subtest.NewService(t, "good")
	w.publish(t, s.Bind(verifierStart))
	stranger := subtest.NewRegistry(t, events.GenerateSigningKey())
	forged, misplaced := s.Events[0], subtest.NewService(t, "elsewhere").Bind(verifierStart)
	forged.Event, forged.NewKey, forged.Sequence = events.MasterReset, events.GenerateSigningKey().Public(), 2
	forged.OldKey = s.Keys[0].Public()
	for i := range 3 {
		stranger.Publish(t, w.js, forged)
		if _, err := w.js.Publish(t.Context(), s.Events[0].Subject(), misplaced.Sign(w.registry.Key)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.js.Publish(t.Context(), s.Events[0].Subject(), []byte(strings.Repeat("{", i))); err != nil {
			t.Fatal(err)
		}
	}
	w.tick(t, verifierStart+1)
	w.want(t, "the current key", s, s.Keys[0], "accepted current")
	if n := w.verifier.Ignored(); n != 9 {
		t.Errorf("%d messages ignored, want 9", n)
	}
	for _, reason := range []string{"untrusted_signature", "target_mismatch", "malformed_message"} {
		if w.log.Count("reason="+reason) == 0 {
			t.Errorf("the log does not tell of %s", reason)
		}
	}
}

// TestVerifierQuickerThanItsEvent: the registry's record speaks for a key whose event has not come.
func TestVerifierQuickerThanItsEvent(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	registry := w.answering(t)
	s := subtest.NewService(t, "quick")
	w.publish(t, s.Bind(verifierStart))
	w.becomes(t, s, s.Keys[0], "accepted current")
	s.Rotate(verifierStart, 300)
	registry.set(s.Record(verifierStart))
	w.tick(t, verifierStart+2) // what was asked about a service that was not known yet is forgotten
	before := registry.count()
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() { w.want(t, "a rotation that has not come", s, s.Keys[1], "accepted current") })
	}
	asking.Wait()
	w.want(t, "a stranger's key", s, events.GenerateSigningKey(), "refused invalid_signature")
	if n := registry.count() - before; n != 1 {
		t.Errorf("%d questions to the registry in one second, want 1", n)
	}
}

// TestVerifierAfterManyEvents: who was away for more events than the stream keeps knows who may pass now.
func TestVerifierAfterManyEvents(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	registry := w.answering(t)
	s := subtest.NewService(t, "many")
	w.publish(t, s.Bind(verifierStart))
	w.becomes(t, s, s.Keys[0], "accepted current")
	w.proxy.Cut()
	for range 100 {
		w.publish(t, s.Rotate(verifierStart+10, 300))
	}
	registry.set(s.Record(verifierStart + 10))
	w.proxy.Restore()
	w.tick(t, verifierStart+10)
	w.want(t, "the current key", s, s.Current(), "accepted current")
	w.want(t, "a key whose grace the stream tells of", s, s.Keys[90], "accepted grace")
	w.want(t, "a key whose replacement is no longer in the stream: the record names it", s, s.Keys[0], "accepted grace")
	w.publish(t, s.Reset(verifierStart+10))
	w.tick(t, verifierStart+11)
	w.want(t, "after a reset, though the record is older", s, s.Keys[100], "refused expired_key")
	w.want(t, "the same, of a key that ended too long ago to be remembered", s, s.Keys[0], "refused invalid_signature")
}

// TestVerifierBesideRotations is for the race detector: readers see whole states only, and never a gap between two keys.
func TestVerifierBesideRotations(t *testing.T) {
	t.Parallel()
	w := runningVerifier(t)
	s := subtest.NewService(t, "beside")
	w.publish(t, s.Bind(verifierStart))
	w.becomes(t, s, s.Keys[0], "accepted current")
	steady := signedQuery(s, s.Keys[0])
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			for ctx.Err() == nil {
				if answer, err := w.verifier.Verify(ctx, steady); err != nil || answer.Result != events.Accepted {
					t.Errorf("refused between two events: %+v, %v", answer, err)
					return
				}
			}
		})
	}
	for i := range 50 {
		other := subtest.NewService(t, fmt.Sprint("other", i))
		w.publish(t, s.Rotate(verifierStart, 300), other.Bind(verifierStart)) // all in grace together
	}
	w.becomes(t, s, s.Current(), "accepted current")
	cancel()
	running.Wait()
}

func TestVerifierConfig(t *testing.T) {
	t.Parallel()
	w := newVerifierWorld(t)
	good := client.VerifierConfig{Conn: w.js.Conn(), Trust: w.registry.Trust}
	for name, change := range map[string]func(*client.VerifierConfig){
		"no connection":     func(c *client.VerifierConfig) { c.Conn = nil },
		"no trust":          func(c *client.VerifierConfig) { c.Trust = events.Trust{} },
		"a MaxAge of 1 s":   func(c *client.VerifierConfig) { c.MaxAge = time.Second },
		"a negative MaxAge": func(c *client.VerifierConfig) { c.MaxAge = -time.Minute },
	} {
		cfg := good
		change(&cfg)
		if _, err := client.NewVerifier(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := client.NewVerifier(good); err != nil {
		t.Error(err)
	}
}
