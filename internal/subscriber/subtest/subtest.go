// Package subtest plays the registry for the tests of subscribers. It makes the signed events of
// services in the order in which a registry would commit them, and publishes them on a real stream.
package subtest

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/keyring"
	"omiappreg.org/keyrotation/streams"
)

// Origin is the registry's domain name.
const Origin = "omiappreg.org"

// Registry signs events.
type Registry struct {
	Key   events.SigningKey
	Trust events.Trust // in Key
}

// NewRegistry returns a registry with this key.
func NewRegistry(t testing.TB, key events.SigningKey) *Registry {
	t.Helper()
	trust, err := events.NewTrust(Origin, key.Public())
	if err != nil {
		t.Fatalf("trust the registry: %v", err)
	}
	return &Registry{Key: key, Trust: trust}
}

// Delivery returns an event as the stream delivers it.
func (r *Registry) Delivery(e *events.Invalidation) incoming.Delivery {
	return incoming.Delivery{Subject: e.Subject(), Payload: e.Sign(r.Key), Sequence: 1, Published: time.Unix(e.Timestamp, 0)}
}

// NeverBound returns what the registry signs about a service that was never bound.
func (r *Registry) NeverBound(c events.Target, at int64) []byte {
	return events.Unbound{Origin: Origin, AppID: c.App, ServiceID: c.Service, Timestamp: at}.Sign(r.Key)
}

// Stream makes the stream of events, as the registry does.
func Stream(t testing.TB, js jetstream.JetStream) {
	t.Helper()
	if _, err := js.CreateStream(t.Context(), streams.InvalidationsConfig()); err != nil {
		t.Fatalf("create the stream: %v", err)
	}
}

// Publish puts events on the stream.
func (r *Registry) Publish(t testing.TB, js jetstream.JetStream, list ...events.Invalidation) {
	t.Helper()
	for i := range list {
		if _, err := js.Publish(t.Context(), list[i].Subject(), list[i].Sign(r.Key)); err != nil {
			t.Fatalf("publish an event: %v", err)
		}
	}
}

// Service is one service with its keys and its events so far.
type Service struct {
	Target events.Target
	Keys   []events.SigningKey // those of the events so far, in their order
	Events []events.Invalidation

	drawn uint64
}

// NewService returns a service that isn't bound yet.
func NewService(t testing.TB, name string) *Service {
	t.Helper()
	target, err := events.ParseTarget("org.omiappreg.alice.business_app.7f8a9d." + name)
	if err != nil {
		t.Fatalf("name a service: %v", err)
	}
	return &Service{Target: target}
}

// Bind returns the service's next event, a SERVICE_BINDING that is committed at this time.
func (s *Service) Bind(at int64) events.Invalidation {
	return s.next(events.ServiceBinding, at, at, s.newKey())
}

// Rotate is a KEY_ROTATION after which the old key is valid for grace more seconds.
func (s *Service) Rotate(at, grace int64) events.Invalidation {
	return s.next(events.KeyRotation, at, at+grace, s.newKey())
}

// EndEarlier is an emergency rotation: a KEY_ROTATION that ends every earlier key.
func (s *Service) EndEarlier(at int64) events.Invalidation {
	s.next(events.KeyRotation, at, at, s.newKey())
	last := &s.Events[len(s.Events)-1]
	last.EndEarlier = true
	return *last
}

// Reset is a MASTER_RESET.
func (s *Service) Reset(at int64) events.Invalidation {
	return s.next(events.MasterReset, at, at, s.newKey())
}

// Revoke is a SERVICE_REVOCATION.
func (s *Service) Revoke(at int64) events.Invalidation {
	return s.next(events.ServiceRevocation, at, at, events.SigningKey{})
}

// BindWith is Bind with a key of the test's choice.
func (s *Service) BindWith(at int64, key events.SigningKey) events.Invalidation {
	return s.next(events.ServiceBinding, at, at, key)
}

// RotateTo is Rotate with a key of the test's choice.
func (s *Service) RotateTo(at, grace int64, key events.SigningKey) events.Invalidation {
	return s.next(events.KeyRotation, at, at+grace, key)
}

// Current returns the key that is current after the events so far.
func (s *Service) Current() events.SigningKey { return s.Keys[len(s.Keys)-1] }

// newKey makes keys that differ between services and are the same in every run, so that a failure
// can be replayed.
func (s *Service) newKey() events.SigningKey {
	s.drawn++
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, s.Target.Service.String())
	binary.BigEndian.PutUint64(seed[len(seed)-8:], s.drawn)
	return events.NewSigningKey(ed25519.NewKeyFromSeed(seed))
}

func (s *Service) next(kind events.EventKind, at, graceEnd int64, key events.SigningKey) events.Invalidation {
	e := events.Invalidation{
		Origin: Origin, Target: s.Target, Event: kind, GracePeriodExpiry: graceEnd, Timestamp: at,
		Nonce: events.NewNonce(), Sequence: int64(len(s.Events)) + 1,
	}
	if kind != events.ServiceBinding {
		e.OldKey = s.Current().Public()
	}
	if !key.IsZero() {
		e.NewKey = key.Public()
		s.Keys = append(s.Keys, key)
	}
	s.Events = append(s.Events, e)
	return e
}

// Keyring returns the keyring after all events so far.
func (s *Service) Keyring() keyring.Keyring {
	var k keyring.Keyring
	for i := range s.Events {
		k = k.Apply(&s.Events[i])
	}
	return k
}

// History returns what the registry answers about the service's past.
func (s *Service) History() events.ServiceHistory {
	k := s.Keyring()
	h := events.ServiceHistory{Origin: Origin, AppID: s.Target.App, ServiceID: s.Target.Service, Sequence: k.Head}
	for _, e := range s.Events {
		key, ok := k.Find(e.NewKey)
		if !ok {
			continue
		}
		line := events.HistoryKey{PublicKey: e.NewKey, Event: e.Event, Sequence: e.Sequence, From: e.Timestamp}
		if until := k.Until(key); until != keyring.NoEnd {
			line.Until = &until
		}
		h.Keys = append(h.Keys, line)
	}
	return h
}

// Part returns a part of a history, as the registry does.
func Part(h events.ServiceHistory, q events.HistoryRange) events.ServiceHistory {
	h.Keys = slices.DeleteFunc(slices.Clone(h.Keys), func(k events.HistoryKey) bool { return k.Sequence <= q.After })
	if h.More = int64(len(h.Keys)) > q.Limit; h.More {
		h.Keys = h.Keys[:q.Limit]
	}
	return h
}

// Record returns what the registry answers about the service at this time.
func (s *Service) Record(at int64) events.ServiceRecord {
	k := s.Keyring()
	r := events.ServiceRecord{
		Origin: Origin, AppID: s.Target.App, ServiceID: s.Target.Service, Status: events.Revoked, Sequence: k.Head,
	}
	for _, key := range k.Keys {
		switch k.At(key, at) {
		case keyring.Current:
			r.Status, r.Current = events.Active, events.CurrentKey{PublicKey: key.PublicKey, Since: key.From}
		case keyring.InGrace:
			r.Grace = append(r.Grace, events.GraceKey{PublicKey: key.PublicKey, Expires: k.Until(key)})
		}
	}
	return r
}

// Running runs a subscriber until the test ends or the returned function is called. The subscriber
// must then end without an error.
func Running(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stopped := false
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}
