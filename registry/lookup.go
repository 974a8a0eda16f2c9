package registry

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/keyformat"
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
	s, err := l.service(ctx, t)
	if err != nil {
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

// service reads a service. It returns an error if the database may know less than was announced.
func (l *Lookup) service(ctx context.Context, t events.Target) (*ledger.Record, error) {
	s, err := l.store.ledger.Service(ctx, t)
	switch {
	case err == nil:
		err = l.guard.Answers(t, s.Sequence)
	case errors.Is(err, ErrUnknownService):
		err = cmp.Or(l.guard.Answers(t, 0), err)
	}
	return s, err
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

// Key returns whose key this is (docs/protocol.md §8.6). It fails as [Lookup.Service] does. Its
// cost doesn't depend on the length of the service's history.
func (l *Lookup) Key(ctx context.Context, key events.PublicKey) (events.KeyRecord, error) {
	record := events.KeyRecord{Origin: l.policy.Load().Origin, PublicKey: key, Timestamp: l.now().Unix()}
	t, sequence, err := l.store.ledger.Owner(ctx, key)
	if errors.Is(err, sql.ErrNoRows) {
		return record, l.guard.AnswersNoKey(key)
	}
	if err != nil {
		return record, fmt.Errorf("look for a key: %w", err)
	}
	s, err := l.service(ctx, t)
	if err != nil {
		return record, err
	}
	lines, _, err := l.store.ledger.Lines(ctx, &s.Service, sequence-1, 1)
	if err != nil || len(lines) == 0 || lines[0].PublicKey != key {
		return record, fmt.Errorf("read the change of %s that brought a key: %w", t, errors.Join(err, sql.ErrNoRows))
	}
	line := &lines[0]
	record.AppID, record.ServiceID = t.App, t.Service
	record.Event, record.Sequence, record.From, record.Until = line.Event, line.Sequence, line.From, line.Until
	return record, nil
}

func (l *Lookup) serveKey(ctx context.Context, c api.Call) (api.Answer, error) {
	key, err := events.ParsePublicKey(c.PublicKey)
	if c.PublicKey == "" {
		key, err = events.ParseKeyQuery(c.Body)
	} else if err != nil {
		err = api.BadRequest(events.InvalidField, err.Error())
	}
	if err != nil {
		return api.Answer{}, err
	}
	record, err := l.Key(ctx, key)
	if err != nil {
		return api.Answer{}, toCaller(err)
	}
	return api.Answer{Body: record.Sign(l.key)}, nil
}

func (l *Lookup) register(ctx context.Context, nc *nats.Conn) (*api.Registered, error) {
	return api.Register(ctx, nc, l.log, api.Service{
		Name: "omi-registry", Description: "The App Registry's lookup: keys of services, now and ever.",
	}, l.endpoints()...)
}

// Routes returns the handlers of the registry's HTTP API (docs/protocol.md §8), by their patterns
// for [http.ServeMux].
func (l *Lookup) Routes() map[string]http.Handler { return api.Routes(l.log, l.endpoints()...) }

func (l *Lookup) endpoints() []api.Endpoint {
	const service = "/v1/apps/{app_id}/services/{service_id}"
	return []api.Endpoint{
		{Name: "service", Subject: events.LookupServiceSubject, Pattern: "GET " + service, Handle: l.serveService},
		{Name: "history", Subject: events.LookupHistorySubject, Pattern: "GET " + service + "/history", Handle: l.serveHistory},
		{Name: "jwks", Pattern: "GET " + service + "/jwks.json", Handle: l.serveJWKS},
		{Name: "registry", Subject: events.LookupRegistrySubject, Pattern: "GET /v1/registry", Handle: l.serveInfo},
		// receipt is only for the sender of the request, and so not over HTTP.
		{Name: "receipt", Subject: events.LookupReceiptSubject, Handle: l.serveReceipt},
		{Name: "key", Subject: events.LookupKeySubject, Pattern: "GET /v1/keys/{public_key}", Handle: l.serveKey},
	}
}

const (
	// unboundASecond is how many answers a second are signed that say that a service was never
	// bound: anyone may ask, for any name. They cost some hundredths of a core. The rest are
	// unsigned, and prove nothing.
	unboundASecond = 1024
	unboundBurst   = 2048
)

// neverBound is the answer about a service that was never bound.
func (l *Lookup) neverBound(t events.Target) error {
	var statement []byte
	now := l.now()
	if l.unbound.AllowN(now, 1) {
		u := events.Unbound{Origin: l.policy.Load().Origin, AppID: t.App, ServiceID: t.Service, Timestamp: now.Unix()}
		statement = u.Sign(l.key)
	}
	return api.UnknownService("The registry has never bound this service.", statement)
}

// lookUp answers a call about a service with the result of look.
func lookUp[T any](ctx context.Context, l *Lookup, c api.Call, look func(context.Context, events.Target) (T, error)) (found T, err error) {
	t, err := c.Target()
	if err != nil {
		return found, err
	}
	found, err = look(ctx, t)
	if errors.Is(err, ErrUnknownService) {
		err = l.neverBound(t)
	}
	return found, toCaller(err)
}

// toCaller tells the caller why an answer can't be given now.
func toCaller(err error) error {
	switch {
	case errors.Is(err, ErrBehind):
		return api.Unavailable("The registry's database lacks this service's last change, and an older key would be a wrong answer. The registry's operator must recover the change; try again then.")
	case errors.Is(err, ErrComparing):
		return api.Unavailable("The registry is comparing its database with the stream of events; try again.")
	}
	return err
}

func (l *Lookup) serveService(ctx context.Context, c api.Call) (api.Answer, error) {
	record, err := lookUp(ctx, l, c, l.Service)
	if err != nil {
		return api.Answer{}, err
	}
	return api.Answer{Body: record.Sign(l.key)}, nil
}

func (l *Lookup) serveInfo(context.Context, api.Call) (api.Answer, error) {
	answer, err := api.JSON(l.Info())
	answer.CacheControl = "no-cache" // to be validated by its ETag each time
	return answer, err
}

// serveJWKS answers with the keys that are valid now. The answer may be kept for the policy's
// JWKSMaxAge in total, and not past the next expiry. Two caches may keep it one after the other,
// and a cache seldom tells how old its answer is. So each of the two gets half of that time, less
// one second because ages are counted in whole seconds.
func (l *Lookup) serveJWKS(ctx context.Context, c api.Call) (api.Answer, error) {
	record, err := lookUp(ctx, l, c, l.keys)
	if err != nil {
		return api.Answer{}, err
	}
	set := struct {
		Keys []keyformat.JSONWebKey `json:"keys"`
	}{Keys: []keyformat.JSONWebKey{}}
	if !record.Current.PublicKey.IsZero() {
		set.Keys = append(set.Keys, keyformat.NewJSONWebKey(record.Current.PublicKey))
	}
	left, now := l.policy.Load().jwksSeconds(), l.now()
	if len(set.Keys) == 0 {
		left = 0 // it was revoked: if it is bound again, it must be back at once
	}
	for _, key := range record.Grace {
		set.Keys = append(set.Keys, keyformat.NewJSONWebKey(key.PublicKey))
		// The second that has begun does not count.
		left = min(left, int64(time.Unix(key.Expires, 0).Sub(now)/time.Second))
	}
	answer, err := api.JSON(set)
	answer.ContentType = "application/jwk-set+json"
	answer.CacheControl = fmt.Sprintf("public, max-age=%d", max(0, left/2-1))
	return answer, err
}

// A history has a line for each key, anyone may ask for it, and each line must be read and signed.
// All callers share these bounds, so a flood of them costs a part of one core.
const (
	linesASecond   = 25_000
	linesBurst     = 8 * events.HistoryPart
	historyWaits   = time.Second // for a turn, before the caller is told to come again
	historyAtLeast = 32          // lines that each question counts as
)

// gate bounds the questions for histories.
type gate struct {
	free  chan struct{} // holds a token for each history that is being read
	lines *rate.Limiter
}

func newGate() *gate {
	return &gate{
		free:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/4)),
		lines: rate.NewLimiter(linesASecond, linesBurst),
	}
}

// enter waits briefly for a turn. The caller must call leave afterwards.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, historyWaits)
	defer cancel()
	select {
	case g.free <- struct{}{}:
		return func() { <-g.free }, nil
	case <-ctx.Done():
		return nil, busy()
	}
}

// charge waits briefly until so many lines may be read.
func (g *gate) charge(ctx context.Context, lines int64) error {
	ctx, cancel := context.WithTimeout(ctx, historyWaits)
	defer cancel()
	if g.lines.WaitN(ctx, int(max(historyAtLeast, min(lines, events.HistoryPart)))) != nil {
		return busy()
	}
	return nil
}

func busy() error {
	p := api.Unavailable("The registry is asked for very many histories; try again in a second.")
	p.RetryAfter = 1
	return p
}

// History returns keys that the service had (docs/protocol.md §8.4), or [ErrUnknownService]. It
// fails as [Lookup.Service] does. Of a long history it reads a part.
func (l *Lookup) History(
	ctx context.Context, t events.Target, part events.HistoryRange,
) (events.ServiceHistory, error) {
	s, err := l.service(ctx, t)
	if err != nil {
		return events.ServiceHistory{}, err
	}
	if !part.Part && s.Sequence > 2*events.HistoryPart { // at least one of two changes brings a key
		return events.ServiceHistory{}, tooLong()
	}
	if err := l.histories.charge(ctx, min(s.Sequence-part.After, part.Limit)); err != nil {
		return events.ServiceHistory{}, err
	}
	h := events.ServiceHistory{
		Origin: l.policy.Load().Origin, AppID: t.App, ServiceID: t.Service,
		Sequence: s.Sequence, Timestamp: l.now().Unix(),
	}
	h.Keys, h.More, err = l.store.ledger.Lines(ctx, &s.Service, part.After, part.Limit)
	if err != nil {
		return h, fmt.Errorf("read the history of %s: %w", t, err)
	}
	if h.More && !part.Part {
		return h, tooLong()
	}
	return h, nil
}

func tooLong() error {
	return api.TooLarge("The service had more than " + strconv.Itoa(events.HistoryPart) +
		" keys. Ask for its history in parts; the first part is the one after 0.")
}

func (l *Lookup) serveHistory(ctx context.Context, c api.Call) (api.Answer, error) {
	question, err := historyQuestion(c)
	if err != nil {
		return api.Answer{}, err
	}
	part, err := events.ParseHistoryQuery(question)
	if err != nil {
		return api.Answer{}, err
	}
	leave, err := l.histories.enter(ctx)
	if err != nil {
		return api.Answer{}, err
	}
	defer leave()
	history, err := lookUp(ctx, l, c, func(ctx context.Context, t events.Target) (events.ServiceHistory, error) {
		return l.History(ctx, t, part)
	})
	if err != nil {
		return api.Answer{}, err
	}
	return api.Answer{Body: history.Sign(l.key)}, nil
}

// historyQuestion returns the question of docs/protocol.md §8.4. Over HTTP it is in the parameters
// of the URL.
func historyQuestion(c api.Call) ([]byte, error) {
	var members []string
	for _, name := range [...]string{"after", "limit"} {
		if !c.Parameters.Has(name) {
			continue
		}
		n, err := strconv.ParseUint(c.Parameters.Get(name), 10, 53)
		if err != nil {
			return nil, api.BadRequest(events.InvalidField,
				"The parameter "+name+" must be an integer from 0 to 2^53-1.")
		}
		members = append(members, fmt.Sprintf("%q:%d", name, n))
	}
	if members == nil {
		return c.Body, nil
	}
	return []byte("{" + strings.Join(members, ",") + "}"), nil
}
