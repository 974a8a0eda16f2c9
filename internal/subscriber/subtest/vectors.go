package subtest

import (
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/vectors"
)

// EventVector is one message of the event vectors, and its receiver: a subscriber with this trust,
// whose store knows the service at sequence 2.
type EventVector struct {
	Name     string
	Trust    events.Trust
	Known    []events.Invalidation // the two events that bring a service to sequence 2
	Current  events.SigningKey     // the key of that service then
	Delivery incoming.Delivery
	Applied  bool                // what the contract expects
	Event    events.Invalidation // of a message to be applied

	keys map[events.PublicKey]events.SigningKey
}

// VectorTime is a time within the grace periods that the vectors grant.
const VectorTime = 1705412620

// Signer returns the private half of one of the vectors' keys.
func (v *EventVector) Signer(t testing.TB, key events.PublicKey) events.SigningKey {
	t.Helper()
	private, ok := v.keys[key]
	if !ok {
		t.Fatalf("the vectors have no private key of %s", key)
	}
	return private
}

// EventVectors returns every message of every file of event vectors.
func EventVectors(t testing.TB) []EventVector {
	t.Helper()
	set := vectors.Load(t)
	byName, byPublic := make(map[string]events.SigningKey), make(map[events.PublicKey]events.SigningKey)
	for _, file := range set.Keys {
		for name, key := range file.Keys {
			private := events.NewSigningKey(key.Private())
			byName[name], byPublic[private.Public()] = private, private
		}
	}
	var list []EventVector
	for _, file := range set.Events {
		trust := trustOf(t, file)
		for _, c := range file.Events {
			known := knownService(t, byName)
			v := EventVector{
				Name: c.Name, Trust: trust, Known: known.Events, Current: known.Current(), Applied: c.Expect == vectors.Applied,
				Delivery: incoming.Delivery{Subject: c.Subject, Payload: c.Message(), Sequence: 3}, keys: byPublic,
			}
			if v.Applied {
				var err error
				if v.Event, err = trust.Invalidation(c.Subject, c.Message()); err != nil {
					t.Fatalf("%s: %v", c.Name, err)
				}
			}
			list = append(list, v)
		}
	}
	return list
}

func trustOf(t testing.TB, file vectors.EventFile) events.Trust {
	t.Helper()
	var keys []events.PublicKey
	for _, text := range file.TrustedRegistryKeys {
		key, err := events.ParsePublicKey(text)
		if err != nil {
			t.Fatalf("%s: a trusted key: %v", file.File, err)
		}
		keys = append(keys, key)
	}
	trust, err := events.NewTrust(file.Origin, keys...)
	if err != nil {
		t.Fatalf("%s: %v", file.File, err)
	}
	return trust
}

// knownService is the service that the vectors are about, before them.
func knownService(t testing.TB, keys map[string]events.SigningKey) *Service {
	t.Helper()
	s := NewService(t, "cms-article-77")
	s.BindWith(1705412000, keys["svc-1"])
	s.RotateTo(1705412300, 300, keys["svc-2"])
	return s
}
