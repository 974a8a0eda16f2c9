// Package verify answers whether a signature is good now (docs/protocol.md §8.2): what the Auth Provider and a receiver
// that checks its peers itself have in common. It keeps no database and listens to no stream: whoever does feeds it.
//
// Keyrings are in memory, where [Memory.Verify] reads them without a lock. A service may be quicker than the event of
// its new key; so a signature that no known key made is taken to the registry, in bounds that no flood can widen:
//
//	               current key, or one in grace
//	Verify ──┬────────────────────────────────────────────▶ accepted
//	         ├── one of the last that have ended ─────────▶ refused
//	         └── anything else ──▶ the registry's record ──▶ accepted or refused
//	                               one question per service and second, a few at a time
//
// A signature that is refused after that may be of a key that ended long ago, and is then refused for another reason: where
// somebody keeps those keys it is held against them, too, for so many verifications a second.
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

// Registry is asked about a service whose newest event may not have come yet.
type Registry interface {
	// ServiceRecord returns what the registry knows of a service now, or [lookup.ErrUnknownService].
	ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error)
}

// Config says whom a Memory asks, and in which bounds. Registry and Log are required.
type Config struct {
	Registry Registry
	// LookupTimeout bounds one question to the registry, and so how long Verify may take. Default 1 s.
	LookupTimeout time.Duration
	// LookupMemory is for how long the registry's answer about a service, or that there is none, is not asked for
	// again. Default 1 s.
	LookupMemory time.Duration
	// LookupMemorySize is how many such answers are kept. Default 65,536.
	LookupMemorySize int
	// LookupsInFlight is how many questions to the registry are open at a time; beyond that, Verify answers from what
	// is known. Default 32.
	LookupsInFlight int
	// EndedKeys returns the keyring of a service with the newest keys that have ended, so many at least if it had as many. A Memory
	// keeps 8. Nil: nobody knows the others, and they count as unknown.
	EndedKeys func(ctx context.Context, target events.Target, most int) (keyring.Keyring, error)
	Log       *slog.Logger
	// Now is the clock. Default time.Now.
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

// Memory is what is known of the services' keys.
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

// Load takes what was known of a service before; sequence is the highest of its events', 0 where the registry sends
// none. It must not run beside anything else.
func (m *Memory) Load(target events.Target, have keyring.Keyring, sequence int64) {
	m.keyrings.load(target, known{have, sequence}, m.now().Unix())
}

// Apply joins events to what is known, in any order, each any number of times. Verify may run beside it; it must not
// run beside itself.
func (m *Memory) Apply(batch []events.Invalidation) {
	now := m.now().Unix()
	for i := range batch {
		m.keyrings.apply(&batch[i], now)
	}
}

// Join joins what a database has of a service. It must not run beside itself, nor beside Apply.
func (m *Memory) Join(target events.Target, have keyring.Keyring, sequence int64) {
	m.keyrings.join(target, known{have, sequence}, m.now().Unix())
}

// Has says whether an event says nothing new.
func (m *Memory) Has(e *events.Invalidation) bool {
	r := m.keyrings.find(e.Target)
	if r == nil {
		return false
	}
	var room room
	have := r.unpack(&room)
	return have.equal(have.apply(e, m.now().Unix()))
}

// Verify says whether a signature is good now; any number of goroutines may call it. Unless settled, no known key made
// the signature, the registry could not be asked, and the answer is a refusal that a newer event may contradict. AsOf
// is left to the one who knows it.
func (m *Memory) Verify(ctx context.Context, q events.VerifyQuery) (answer events.VerifyAnswer, settled bool) {
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

// judge is Verify where the current key did not make the signature, or there is none. So many of the record's first keys
// were tried in vain.
func (m *Memory) judge(ctx context.Context, q *events.VerifyQuery, r record, tried int) (answer events.VerifyAnswer, settled bool) {
	var room room
	have := r.unpack(&room)
	answer, sure := have.judgeIf(r != nil, q, m.now().Unix(), tried)
	if sure {
		return answer, true
	}
	found := m.lookups.find(ctx, q.Target)
	// Meanwhile an event may have come that ends what the registry's record still has, or that brings the key.
	now := m.now().Unix()
	if next := m.keyrings.find(q.Target); !bytes.Equal(r, next) { // else no other key is accepted, and none is tried twice
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
