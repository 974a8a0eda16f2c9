package registry

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// ErrUnknownService means that the service was never bound.
var ErrUnknownService = errors.New("unknown service")

// Lookup answers what the registry knows (docs/protocol.md §8).
type Lookup struct {
	policy      *atomic.Pointer[Policy] // which another replica may change, but for its origin
	key         events.SigningKey
	store       *Store
	propagation *propagation
	receipts    *receipts
	fence       *fence
	unbound     *rate.Limiter // of signed answers about services that were never bound
	log         *slog.Logger
	now         func() time.Time
}

func newLookup(cfg Config, js jetstream.JetStream, f *fence) *Lookup {
	policy := &atomic.Pointer[Policy]{}
	policy.Store(&cfg.Policy)
	return &Lookup{
		policy: policy, key: cfg.Key, store: cfg.Store, log: cfg.Log, now: cfg.Now,
		propagation: &propagation{js: js}, receipts: &receipts{js: js}, fence: f, unbound: rate.NewLimiter(unboundASecond, unboundBurst),
	}
}

// Service returns the service's record (§8.1), or [ErrUnknownService]; [ErrComparing] or [ErrBehind] where the database may
// not have the last change.
func (l *Lookup) Service(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	record, err := l.keys(ctx, t)
	if err == nil {
		record.Propagation = l.propagation.of(ctx, t, record.Sequence)
	}
	return record, err
}

// keys returns the record without what only the broker knows.
func (l *Lookup) keys(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	s, err := l.store.service(ctx, t)
	if err := l.mayAnswer(err, t, func() int64 { return s.sequence }); err != nil {
		return events.ServiceRecord{}, err
	}
	now := l.now().Unix()
	record := events.ServiceRecord{
		Origin: l.policy.Load().Origin, AppID: t.App, ServiceID: t.Service, Status: s.status,
		Sequence: s.sequence, BoundAt: s.boundAt,
		ServiceType: s.serviceType, EndpointURL: s.endpointURL, Timestamp: now,
	}
	if s.providerReceipt != "" {
		record.ProviderReceipt = []byte(s.providerReceipt)
	}
	if s.active() {
		record.Current = events.CurrentKey{PublicKey: s.key, Since: s.changedAt}
		if from := l.policy.Load().rotatesFrom(s.recent); from > now {
			record.NextRotationAt = from
		}
	}
	if record.Grace, err = l.store.inGrace(ctx, t, s.sequence, now); err != nil {
		return events.ServiceRecord{}, err
	}
	return record, nil
}

// mayAnswer returns the error of a question to the database about a service, or why its answer is too old to be given.
func (l *Lookup) mayAnswer(err error, t events.Target, sequence func() int64) error {
	switch {
	case errors.Is(err, ErrUnknownService):
		return cmp.Or(l.fence.answers(t, 0), err)
	case err != nil:
		return err
	}
	return l.fence.answers(t, sequence())
}

// History returns every key that the service ever had (§8), or [ErrUnknownService], and fails as [Lookup.Service] does.
func (l *Lookup) History(ctx context.Context, t events.Target) (events.ServiceHistory, error) {
	list, err := l.store.history(ctx, t)
	if err == nil && len(list) == 0 {
		err = ErrUnknownService
	}
	if err := l.mayAnswer(err, t, func() int64 { return list[len(list)-1].Sequence }); err != nil {
		return events.ServiceHistory{}, err
	}
	ring := keyring.Collect(list)
	h := events.ServiceHistory{
		Origin: l.policy.Load().Origin, AppID: t.App, ServiceID: t.Service,
		Sequence: ring.Head, Keys: []events.HistoryKey{}, Timestamp: l.now().Unix(),
	}
	for _, key := range slices.Backward(ring.Keys) { // which has the newest first
		line := events.HistoryKey{PublicKey: key.PublicKey, Sequence: key.Position, From: key.From}
		line.Event = list[key.Position-1].Event // a history has no gap, and brings every key that it replaces
		if until := ring.Until(key); until != keyring.NoEnd {
			line.Until = &until
		}
		h.Keys = append(h.Keys, line)
	}
	return h, nil
}

// Info returns what the registry says of itself (§8).
func (l *Lookup) Info() events.RegistryInfo {
	policy := l.policy.Load()
	return events.RegistryInfo{
		Origin: policy.Origin, PublicKeys: []events.PublicKey{l.key.Public()},
		GracePeriod: policy.graceSeconds(), MaxClockSkew: policy.skewSeconds(), RequireProof: policy.RequireProof,
		JWKSMaxAge: policy.jwksSeconds(),
	}
}

// toldService is all that is kept of a service.
type toldService struct {
	service
	details
}

// service reads one service, or returns [ErrUnknownService].
func (s *Store) service(ctx context.Context, t events.Target) (*toldService, error) {
	var one toldService
	const query = "SELECT " + serviceColumns + ", bound_at, service_type, endpoint_url, provider_receipt FROM services WHERE target = $1"
	err := s.db.Reader().QueryRowContext(ctx, query, t.String()).
		Scan(append(one.columns(), &one.boundAt, withNUL(&one.serviceType), &one.endpointURL, &one.providerReceipt)...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrUnknownService
	}
	if err != nil {
		return nil, fmt.Errorf("read the service %s: %w", t, err)
	}
	return &one, nil
}

// inGrace reads the keys that are in grace at now, newest first, as the history was at this sequence: it only grows,
// so a change in between doesn't mix into the answer.
func (s *Store) inGrace(ctx context.Context, t events.Target, sequence, now int64) ([]events.GraceKey, error) {
	var keys []events.GraceKey
	err := s.each(ctx, `SELECT old_public_key, grace_period_expiry FROM history
		WHERE service = (SELECT id FROM services WHERE target = $1) AND sequence <= $2 AND event = $3
		AND grace_period_expiry > $4 AND sequence > (SELECT COALESCE(MAX(sequence), 0) FROM history
			WHERE service = (SELECT id FROM services WHERE target = $1) AND sequence <= $2 AND (event IN ($5, $6) OR end_earlier = 1))
		ORDER BY sequence DESC`,
		[]any{t.String(), sequence, string(events.KeyRotation), now, string(events.MasterReset), string(events.ServiceRevocation)},
		func(rows *sql.Rows) error {
			var key events.GraceKey
			err := rows.Scan(keyColumn{&key.PublicKey}, &key.Expires)
			keys = append(keys, key)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("read the keys in grace of %s: %w", t, err)
	}
	return keys, nil
}

// history reads every change of a service, in its order.
func (s *Store) history(ctx context.Context, t events.Target) ([]events.Invalidation, error) {
	var list []events.Invalidation
	err := s.each(ctx, `SELECT sequence, event, old_public_key, public_key, grace_period_expiry, committed_at, event_nonce, end_earlier
		FROM history WHERE service = (SELECT id FROM services WHERE target = $1) ORDER BY sequence`, []any{t.String()}, func(rows *sql.Rows) error {
		e := events.Invalidation{Target: t}
		var endEarlier int64
		err := rows.Scan(&e.Sequence, &e.Event, keyColumn{&e.OldKey}, keyColumn{&e.NewKey},
			&e.GracePeriodExpiry, &e.Timestamp, nonceText(&e.Nonce), &endEarlier)
		e.EndEarlier = endEarlier == 1
		list = append(list, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of %s: %w", t, err)
	}
	return list, nil
}
