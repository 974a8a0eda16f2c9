package authsub_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestOverNATS asks as others do, over NATS and HTTP, and has the registry asked over NATS.
func TestOverNATS(t *testing.T) {
	t.Parallel()
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	registry := subtest.NewRegistry(t, events.GenerateSigningKey())
	s, forged := subtest.NewService(t, "bound"), subtest.NewService(t, "forged")
	s.Bind(start)
	forged.Bind(start)
	var asked atomic.Int64
	lookup := api.Endpoint{
		Name: "service", Subject: events.LookupServiceSubject,
		Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
			asked.Add(1)
			switch c.ServiceID {
			case "bound":
				return api.Answer{Body: s.Record(start).Sign(registry.Key)}, nil
			case "forged":
				return api.Answer{Body: forged.Record(start).Sign(events.GenerateSigningKey())}, nil
			}
			target, err := c.Target()
			if err != nil {
				return api.Answer{}, err
			}
			return api.Answer{}, api.UnknownService("No such service.", registry.NeverBound(target, time.Now().Unix()))
		},
	}
	auth, err := authsub.New(t.Context(), authsub.Config{
		JetStream: js, DatabaseURL: testenv.Database(t, testenv.SQLite), Trust: registry.Trust, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = auth.Close() })
	service, err := api.Register(t.Context(), nc, slog.New(slog.DiscardHandler),
		api.Service{Name: "omi-auth", Description: "test"}, append(auth.Endpoints(), lookup)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	mux := http.NewServeMux()
	api.Mount(mux, auth.Routes())

	for _, c := range []struct {
		service *subtest.Service
		key     events.SigningKey
		want    string
	}{
		{s, s.Keys[0], fmt.Sprintf(`{"result":"accepted","key":"current","public_key":"%s","sequence":1,"as_of":0}`, s.Keys[0].Public())},
		{s, events.GenerateSigningKey(), `{"result":"refused","reason":"invalid_signature","as_of":0}`},
		{forged, forged.Keys[0], `{"result":"refused","reason":"unknown_service","as_of":0}`},
		{subtest.NewService(t, "nobody"), s.Keys[0], `{"result":"refused","reason":"unknown_service","as_of":0}`},
	} {
		question := questionText(c.service, c.key)
		reply, err := nc.RequestWithContext(t.Context(), events.AuthVerifySubject, []byte(question))
		if err != nil {
			t.Fatal(err)
		}
		if string(reply.Data) != c.want {
			t.Errorf("over NATS: got %s\nwant %s", reply.Data, c.want)
		}
		recorder := httptest.NewRecorder()
		mux.ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, "/v1/verify", strings.NewReader(question)))
		if recorder.Body.String() != c.want {
			t.Errorf("over HTTP: got %s\nwant %s", recorder.Body, c.want)
		}
	}
	if asked.Load() == 0 {
		t.Error("the registry was not asked")
	}
	recorder := httptest.NewRecorder()
	mux.ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, "/v1/verify", strings.NewReader("{}")))
	if recorder.Code != http.StatusBadRequest {
		t.Errorf("a question without its members: %d", recorder.Code)
	}
}

func questionText(s *subtest.Service, key events.SigningKey) string {
	q := query(s, key)
	return fmt.Sprintf(`{"app_id": "%s", "service_id": "%s", "message": "%s", "signature": "%s"}`,
		s.Target.App, s.Target.Service, base64.RawURLEncoding.EncodeToString(q.Message), q.Signature)
}
