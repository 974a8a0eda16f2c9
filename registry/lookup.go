package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// ErrUnknownService means that the service was never bound.
var ErrUnknownService = ledger.ErrUnknownService

// Lookup answers questions about what the registry knows (docs/protocol.md §8).
type Lookup struct {
	policy      *atomic.Pointer[Policy] // another replica may change all of it except the origin
	key         events.SigningKey
	store       *Store
	propagation *propagation
	receipts    *receipts
	guard       restoreGuard
	unbound     *rate.Limiter // limits the signed answers about services that were never bound
	histories   *gate
	log         *slog.Logger
	now         func() time.Time
}

func newLookup(cfg Config, js jetstream.JetStream, g restoreGuard) *Lookup {
	policy := &atomic.Pointer[Policy]{}
	policy.Store(&cfg.Policy)
	return &Lookup{
		policy: policy, key: cfg.Key, store: cfg.Store, log: cfg.Log, now: cfg.Now,
		propagation: &propagation{js: js}, receipts: &receipts{js: js}, guard: g,
		unbound: rate.NewLimiter(unboundASecond, unboundBurst), histories: newGate(),
	}
}

// Service returns the service's record (docs/protocol.md §8.1), or [ErrUnknownService]. If the
// database may lack the last change, it returns [ErrComparing] or [ErrBehind].
func (l *Lookup) Service(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	record, err := l.keys(ctx, t)
	if err == nil {
		record.Propagation, record.OtherDurables = l.propagation.of(ctx, t, record.Sequence, l.policy.Load().waitsFor)
	}
	return record, err
}

// keys returns the record without the parts that only the broker knows.
func (l *Lookup) keys(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	s, err := l.store.ledger.Service(ctx, t)
	if err := l.mayAnswer(err, t, func() int64 { return s.Sequence }); err != nil {
		return events.ServiceRecord{}, err
	}
	now := l.now().Unix()
	record := events.ServiceRecord{
		Origin: l.policy.Load().Origin, AppID: t.App, ServiceID: t.Service, Status: s.Status,
		Sequence: s.Sequence, BoundAt: s.BoundAt,
		ServiceType: s.ServiceType, EndpointURL: s.EndpointURL, Timestamp: now,
	}
	if s.ProviderReceipt != "" {
		record.ProviderReceipt = []byte(s.ProviderReceipt)
	}
	if s.Active() {
		record.Current = events.CurrentKey{PublicKey: s.Key, Since: s.ChangedAt}
		if from := l.policy.Load().rules().RotatesFrom(s.Recent); from > now {
			record.NextRotationAt = from
		}
	}
	if record.Grace, err = l.store.ledger.InGrace(ctx, &s.Service, now, l.policy.Load().graceSeconds()); err != nil {
		return events.ServiceRecord{}, fmt.Errorf("look up %s: %w", t, err)
	}
	return record, nil
}

// mayAnswer returns the error of a query about a service, or why its answer may be out of date.
func (l *Lookup) mayAnswer(err error, t events.Target, sequence func() int64) error {
	switch {
	case errors.Is(err, ErrUnknownService):
		return cmp.Or(l.guard.Answers(t, 0), err)
	case err != nil:
		return err
	}
	return l.guard.Answers(t, sequence())
}

// Info returns what the registry says about itself (docs/protocol.md §8).
func (l *Lookup) Info() events.RegistryInfo {
	policy := l.policy.Load()
	return events.RegistryInfo{
		Origin: policy.Origin, PublicKeys: []events.PublicKey{l.key.Public()},
		GracePeriod: policy.graceSeconds(), MaxClockSkew: policy.skewSeconds(), RequireProof: policy.RequireProof,
		JWKSMaxAge: policy.jwksSeconds(),
	}
}
