// Package verify answers whether a signature is good now (docs/protocol.md §8.2). The Auth Provider
// uses it, and so does a receiver that checks its peers itself. It keeps no database and reads no
// stream: its callers feed it.
//
// Keyrings are in memory, where [Memory.Verify] reads them without a lock. A service may be quicker
// than the event of its new key. So Verify asks the registry about a signature that no known key
// made, within bounds that a flood can't exceed:
//
//	               current key, or one in grace
//	Verify ──┬────────────────────────────────────────────▶ accepted
//	         ├── one of the last that have ended ─────────▶ refused
//	         └── anything else ──▶ the registry's record ──▶ accepted or refused
//	                               one question per service and second, a few at a time
//
// A signature that is still refused may be by a key that ended long ago. If a source of these keys
// is given, Verify tries them, too, with a limit on such verifications a second. It then refuses
// the signature for a more precise reason.
package verify

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// Registry answers questions about a service whose newest event may not have come yet.
type Registry interface {
	// ServiceRecord returns what the registry knows of a service now, or
	// [lookup.ErrUnknownService].
	ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error)
}

// Config says which sources a Memory asks, and within which bounds. Registry and Log are required.
type Config struct {
	Registry Registry
	// LookupTimeout bounds one question to the registry, and so the time that Verify may take. The
	// default is 1 s.
	LookupTimeout time.Duration
	// LookupMemory is how long the registry's answer about a service, or its absence, is kept
	// before the registry is asked again. The default is 1 s.
	LookupMemory time.Duration
	// LookupMemorySize is how many such answers are kept. The default is 65,536.
	LookupMemorySize int
	// LookupsInFlight limits the open questions to the registry. Beyond it, Verify answers from
	// memory. The default is 32.
	LookupsInFlight int
	// EndedKeys returns the keyring of a service with its newest ended keys, at least so many if it
	// had as many. A Memory keeps 8. If EndedKeys is nil, all other keys count as unknown.
	EndedKeys func(ctx context.Context, target events.Target, most int) (keyring.Keyring, error)
	Log       *slog.Logger
	// Now is the clock. The default is time.Now.
	Now func() time.Time
}

const (
	defaultLookupTimeout    = time.Second
	defaultLookupMemory     = time.Second
	defaultLookupMemorySize = 1 << 16
	defaultLookupsInFlight  = 32
)

func (c Config) withDefaults() Config {
	c.LookupTimeout = cmp.Or(c.LookupTimeout, defaultLookupTimeout)
	c.LookupMemory = cmp.Or(c.LookupMemory, defaultLookupMemory)
	c.LookupMemorySize = cmp.Or(c.LookupMemorySize, defaultLookupMemorySize)
	c.LookupsInFlight = cmp.Or(c.LookupsInFlight, defaultLookupsInFlight)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Memory holds the services' keys.
type Memory struct {
	now      func() time.Time
	keyrings *keyrings
	lookups  *lookups
	ended    *ended
}

// New returns a Memory that knows no service.
func New(cfg Config) (*Memory, error) {
	cfg = cfg.withDefaults()
	lookups, err := newLookups(cfg)
	if err != nil {
		return nil, err
	}
	return &Memory{now: cfg.Now, keyrings: newKeyrings(shards), lookups: lookups, ended: newEnded(cfg)}, nil
}

// Load adds the state of a service at the start. sequence is the highest of its events, or 0 if the
// registry sends none. Nothing may run concurrently.
func (m *Memory) Load(target events.Target, have keyring.Keyring, sequence int64) {
	m.keyrings.load(target, known{have, sequence}, m.now().Unix())
}

// Apply joins events, in any order, each any number of times. Verify may run concurrently; only one
// Apply or Join may run at a time.
func (m *Memory) Apply(batch []events.Invalidation) {
	now := m.now().Unix()
	for i := range batch {
		m.keyrings.apply(&batch[i], now)
	}
}

// Join joins the state of a service from a database. Only one Apply or Join may run at a time.
func (m *Memory) Join(target events.Target, have keyring.Keyring, sequence int64) {
	m.keyrings.join(target, known{have, sequence}, m.now().Unix())
}

// Has reports whether an event says nothing new.
func (m *Memory) Has(e *events.Invalidation) bool {
	r := m.keyrings.find(e.Target)
	if r == nil {
		return false
	}
	var room room
	have := r.unpack(&room)
	return have.equal(have.apply(e, m.now().Unix()))
}

// Verify answers whether a signature is good now. Any number of goroutines may call it. If final
// is false, no known key made the signature, the registry could not be asked, and the answer is a
// refusal that a newer event may contradict. The caller sets AsOf.
func (m *Memory) Verify(ctx context.Context, q events.VerifyQuery) (answer events.VerifyAnswer, final bool) {
	r := m.keyrings.find(q.Target)
	answer, current := r.accepted()
	if current && answer.PublicKey.Verify(q.Message, q.Signature) {
		return answer, true
	}
	tried := 0
	if current {
		tried = 1
	}
	return m.judge(ctx, &q, r, tried)
}

// judge is Verify for a signature that the current key did not make, or for a service without one.
// The first tried keys of the record did not make it.
func (m *Memory) judge(ctx context.Context, q *events.VerifyQuery, r record, tried int) (answer events.VerifyAnswer, final bool) {
	var room room
	have := r.unpack(&room)
	answer, sure := have.judgeIf(r != nil, q, m.now().Unix(), tried)
	if sure {
		return answer, true
	}
	found := m.lookups.find(ctx, q.Target)
	// Meanwhile an event may have come that ends a key of the registry's record, or that brings the
	// key.
	now := m.now().Unix()
	// otherwise no other key is accepted, and none is tried twice
	if next := m.keyrings.find(q.Target); !bytes.Equal(r, next) {
		r, have = next, next.unpack(&room)
		if answer, sure = have.judgeIf(r != nil, q, now, 0); sure {
			return answer, true
		}
	}
	if found.record != nil && (r == nil || found.record.atLeastAsNewAs(&have)) {
		theirs, _ := found.record.judge(q, now, found.record.triedIn(&have, now))
		answer = better(answer, theirs)
	}
	if answer.Reason == string(events.InvalidSignature) && m.ended.made(ctx, q, &have) {
		return refused(events.ExpiredKey), true
	}
	return answer, found.answered
}
