package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/keyformat"
)

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
		err = api.Unavailable("The registry's database lacks this service's last change, and an older key would be a wrong answer. The registry's operator must recover the change; try again then.")
	case errors.Is(err, ErrComparing):
		err = api.Unavailable("The registry is comparing its database with the stream of events; try again.")
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
