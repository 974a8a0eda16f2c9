package registryclient_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

const start = int64(1_705_412_600)

// answers is a registry that knows one service, signs for another as a stranger would, and is out
// of order for a third.
func answers(t *testing.T, conn *nats.Conn, registry *subtest.Registry, known *subtest.Service) {
	t.Helper()
	signer := func(c api.Call) (events.SigningKey, error) {
		switch c.ServiceID {
		case known.Target.Service.String():
			return registry.Key, nil
		case "forged":
			return events.GenerateSigningKey(), nil
		case "failing":
			return events.SigningKey{}, errors.New("the database is unavailable")
		}
		target, err := c.Target()
		if err != nil {
			return events.SigningKey{}, err
		}
		return events.SigningKey{}, api.UnknownService("No such service.", registry.NeverBound(target, start))
	}
	about := func(c api.Call) *subtest.Service {
		s := *known
		s.Target.Service, _ = events.ParseServiceID(c.ServiceID)
		return &s
	}
	endpoints := []api.Endpoint{
		{
			Name: "service", Subject: events.LookupServiceSubject,
			Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
				key, err := signer(c)
				if err != nil {
					return api.Answer{}, err
				}
				return api.Answer{Body: about(c).Record(start).Sign(key)}, nil
			},
		},
		{
			Name: "history", Subject: events.LookupHistorySubject,
			Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
				key, err := signer(c)
				if err != nil {
					return api.Answer{}, err
				}
				return api.Answer{Body: about(c).History().Sign(key)}, nil
			},
		},
		{
			Name: "registry", Subject: events.LookupRegistrySubject,
			Handle: func(context.Context, api.Call) (api.Answer, error) {
				return api.JSON(events.RegistryInfo{
					Origin: subtest.Origin, PublicKeys: []events.PublicKey{registry.Key.Public()}, GracePeriod: 300, MaxClockSkew: 200,
				})
			},
		},
	}
	service, err := api.Register(t.Context(), conn, slog.New(slog.DiscardHandler),
		api.Service{Name: "omi-registry", Description: "test"}, endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	played := subtest.NewRegistry(t, events.GenerateSigningKey())
	known := subtest.NewService(t, "known")
	known.Bind(start)
	registry := registryclient.Registry{Conn: conn, Trust: played.Trust, Now: func() time.Time { return time.Unix(start, 0) }}
	both := func(name string) (record events.ServiceRecord, history events.ServiceHistory, errs [2]error) {
		target := subtest.NewService(t, name).Target
		record, errs[0] = registry.ServiceRecord(t.Context(), target)
		history, errs[1] = registry.ServiceHistory(t.Context(), target)
		return record, history, errs
	}

	_, _, errs := both("known")
	_, infoErr := registryclient.RegistryInfo(t.Context(), conn)
	for _, err := range append(errs[:], infoErr) {
		if !errors.Is(err, registryclient.ErrNoRegistry) {
			t.Errorf("while no registry listens: %v, want ErrNoRegistry", err)
		}
	}

	answers(t, conn, played, known)
	record, history, errs := both("known")
	if errs != [2]error{} || record.Current.PublicKey != known.Current().Public() || len(history.Keys) != 1 {
		t.Errorf("a service that is bound: %+v, %+v, %v", record, history, errs)
	}
	_, _, errs = both("nobody")
	for _, err := range errs {
		if !errors.Is(err, registryclient.ErrUnknownService) {
			t.Errorf("a service that is not: %v, want ErrUnknownService", err)
		}
	}
	_, _, errs = both("forged")
	for _, err := range errs {
		if refusal := (*events.Refusal)(nil); !errors.As(err, &refusal) || refusal.Reason != events.UntrustedSignature || !errors.Is(err, registryclient.ErrUntrusted) {
			t.Errorf("what a stranger signed: %v, want %s", err, events.UntrustedSignature)
		}
	}
	_, _, errs = both("failing")
	for _, err := range errs {
		problem := (*api.Problem)(nil)
		if !errors.As(err, &problem) || problem.Status != http.StatusServiceUnavailable || problem.Detail == "" {
			t.Errorf("a registry whose database is unavailable: %v, want its words", err)
		}
	}
	info, err := registryclient.RegistryInfo(t.Context(), conn)
	if err != nil || info.Origin != subtest.Origin || len(info.PublicKeys) != 1 || info.MaxClockSkew != 200 {
		t.Errorf("the registry's own description: %+v, %v", info, err)
	}
}

// TestNeverBoundIsSigned: any party that may answer at the broker may say of any service that it
// was never bound. That counts only if the registry has signed it, about this service and now.
func TestNeverBoundIsSigned(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	played, stranger := subtest.NewRegistry(t, events.GenerateSigningKey()), subtest.NewRegistry(t, events.GenerateSigningKey())
	elsewhere := events.Unbound{Origin: "example.org", Timestamp: start}
	one, other := subtest.NewService(t, "nobody").Target, subtest.NewService(t, "other").Target
	elsewhere.AppID, elsewhere.ServiceID = one.App, one.Service
	bound := subtest.NewService(t, "nobody")
	bound.Bind(start)
	var statement []byte
	service, err := api.Register(t.Context(), conn, slog.New(slog.DiscardHandler), api.Service{Name: "omi-registry"}, api.Endpoint{
		Name: "service", Subject: events.LookupServiceSubject,
		Handle: func(context.Context, api.Call) (api.Answer, error) {
			return api.Answer{}, api.UnknownService("No such service.", statement)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	registry := registryclient.Registry{Conn: conn, Trust: played.Trust, Now: func() time.Time { return time.Unix(start, 0) }}
	for _, c := range []struct {
		name      string
		statement []byte
		believed  bool
	}{
		{"signed", played.NeverBound(one, start), true},
		{"signed as long ago as is taken", played.NeverBound(one, start-events.MaxUnboundAge), true},
		{"not signed", nil, false},
		{"no envelope", []byte(`{"signed":true}`), false},
		{"signed by a stranger", stranger.NeverBound(one, start), false},
		{"signed about another service", played.NeverBound(other, start), false},
		{"signed before it was bound", played.NeverBound(one, start-events.MaxUnboundAge-1), false},
		{"signed for another registry", elsewhere.Sign(played.Key), false},
		{"a record", bound.Record(start).Sign(played.Key), false},
	} {
		statement = c.statement
		if _, err := registry.ServiceRecord(t.Context(), one); errors.Is(err, registryclient.ErrUnknownService) != c.believed || err == nil {
			t.Errorf("%s: %v; believed is to be %t", c.name, err, c.believed)
		}
	}
}

// TestLongHistory: a history that is too large for a message comes in parts, which are put
// together. If the service changes meanwhile, reading starts again.
func TestLongHistory(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	played := subtest.NewRegistry(t, events.GenerateSigningKey())
	target := subtest.NewService(t, "known").Target
	history := events.ServiceHistory{Origin: subtest.Origin, AppID: target.App, ServiceID: target.Service, Record: "HISTORY"}
	rotate := func() {
		history.Sequence++
		history.Keys = append(history.Keys, events.HistoryKey{
			PublicKey: events.GenerateSigningKey().Public(), Event: events.KeyRotation, Sequence: history.Sequence, From: start, Until: new(start + 300),
		})
	}
	for range 7300 { // 1.06 MB
		rotate()
	}
	parts := 0
	service, err := api.Register(t.Context(), conn, slog.New(slog.DiscardHandler), api.Service{Name: "omi-registry"}, api.Endpoint{
		Name: "history", Subject: events.LookupHistorySubject,
		Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
			q, err := events.ParseHistoryQuery(c.Body)
			if err != nil || !q.Part {
				return api.Answer{}, errors.New("it is not asked for in parts")
			}
			if parts++; parts == 3 {
				rotate()
			}
			return api.Answer{Body: subtest.Part(history, q).Sign(played.Key)}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	told, err := registryclient.Registry{Conn: conn, Trust: played.Trust}.ServiceHistory(ctx, target)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(history, told) {
		t.Errorf("the service had %d keys by sequence %d; told were %d by %d, or others", len(history.Keys), history.Sequence, len(told.Keys), told.Sequence)
	}
	if parts != 3+4 {
		t.Errorf("%d parts were asked for", parts)
	}
}

// TestReadingGoesOn: a history that changes while its parts are read is still read to its end, with
// the final end of each key. Keys that have ended are read once.
func TestReadingGoesOn(t *testing.T) {
	t.Parallel()
	s := subtest.NewService(t, "busy")
	now := start
	s.Bind(now)
	for range 200 {
		now += 10
		s.Rotate(now, 60)
	}
	var keys []events.HistoryKey
	var reading registryclient.Reading
	parts, lines := 0, 0
	for done := false; !done; {
		from := reading.Next()
		whole := s.History()
		whole.Timestamp = now
		part := subtest.Part(whole, events.HistoryRange{After: from, Limit: 16})
		parts, lines = parts+1, lines+len(part.Keys)
		keys = slices.DeleteFunc(keys, func(k events.HistoryKey) bool { return k.Sequence > from })
		keys = append(keys, part.Keys...)
		var err error
		if done, err = reading.Add(&part); err != nil {
			t.Fatal(err)
		}
		if parts > 400 {
			t.Fatalf("after %d parts, %d lines, it is at sequence %d of %d", parts, lines, reading.Kept, whole.Sequence)
		}
		if now += 5; !done && parts%2 == 0 { // not while the last ones are told
			s.Reset(now)
		}
		if parts > 15 {
			now += 60
		}
	}
	if want := s.History().Keys; !reflect.DeepEqual(keys, want) {
		t.Errorf("%d keys are told, of %d, or with other ends", len(keys), len(want))
	}
	stuck := events.ServiceHistory{Sequence: 3, More: true}
	if _, err := new(registryclient.Reading).Add(&stuck); err == nil {
		t.Error("a part that does not go on is taken")
	}
}

// TestTrusted: a registry is known to be untrusted only if it names none of the trusted keys, or
// another origin.
func TestTrusted(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	registry := subtest.NewRegistry(t, events.GenerateSigningKey())
	other := events.GenerateSigningKey().Public()
	trust := func(origin string, keys ...events.PublicKey) registryclient.Registry {
		trust, err := events.NewTrust(origin, keys...)
		if err != nil {
			t.Fatal(err)
		}
		return registryclient.Registry{Conn: conn, Trust: trust}
	}
	if err := trust(subtest.Origin, other).Trusted(t.Context()); !errors.Is(err, registryclient.ErrNoRegistry) || errors.Is(err, registryclient.ErrUntrusted) {
		t.Errorf("while no registry answers: %v", err)
	}
	answers(t, conn, registry, subtest.NewService(t, "known"))
	key := registry.Key.Public()
	for name, c := range map[string]struct {
		asked registryclient.Registry
		want  error
	}{
		"its key":             {trust(subtest.Origin, key), nil},
		"its key and another": {trust(subtest.Origin, other, key), nil},
		"another key":         {trust(subtest.Origin, other), registryclient.ErrUntrusted},
		"another origin":      {trust("example.org", key), registryclient.ErrUntrusted},
	} {
		if err := c.asked.Trusted(t.Context()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
