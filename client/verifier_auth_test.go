package client_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// playAuth answers as the Auth Provider does, with what the function returns.
func playAuth(t *testing.T, conn *nats.Conn, answer func(q events.VerifyQuery) (api.Answer, error)) {
	t.Helper()
	service, err := api.Register(t.Context(), conn, slog.New(slog.DiscardHandler),
		api.Service{Name: "omi-auth", Description: "test"}, api.Endpoint{
			Name: "verify", Subject: events.AuthVerifySubject,
			Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
				q, err := events.ParseVerifyQuery(c.Body)
				if err != nil {
					return api.Answer{}, err
				}
				return answer(q)
			},
		})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
}

func TestAuthVerifier(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	now := func() time.Time { return time.Unix(verifierStart, 0) }
	s := subtest.NewService(t, "asked")
	s.Bind(verifierStart)
	s.Rotate(verifierStart, 300)
	auth := client.AuthVerifier{Conn: conn, Now: now}
	if _, err := auth.Verify(t.Context(), signedQuery(s, s.Keys[1])); !errors.Is(err, client.ErrNoAuth) {
		t.Errorf("while nobody answers: %v, want ErrNoAuth", err)
	}

	accepted := events.VerifyAnswer{
		Result: events.Accepted, Key: events.KeyCurrent, PublicKey: s.Keys[1].Public(), Sequence: 2, AsOf: verifierStart - 60,
	}
	with := func(change func(*events.VerifyAnswer)) events.VerifyAnswer {
		answer := accepted
		change(&answer)
		return answer
	}
	inGrace := with(func(a *events.VerifyAnswer) { a.Key, a.Expires = events.KeyGrace, verifierStart+1 })
	refused := events.VerifyAnswer{Result: events.Refused, Reason: events.ExpiredKey, AsOf: verifierStart}
	cases := map[string]struct {
		answer any
		want   string // a verdict, or a part of the error
	}{
		"accepted":          {accepted, "accepted current"},
		"in-grace":          {inGrace, "accepted grace"},
		"refused":           {refused, "refused expired_key"},
		"knows-nothing":     {with(func(a *events.VerifyAnswer) { a.AsOf = 0 }), "not ready"},
		"knows-old-things":  {with(func(a *events.VerifyAnswer) { a.AsOf = verifierStart - 61 }), "stale"},
		"another-key":       {with(func(a *events.VerifyAnswer) { a.PublicKey = s.Keys[0].Public() }), "did not make it"},
		"no-key":            {with(func(a *events.VerifyAnswer) { a.PublicKey = events.PublicKey{} }), "do not fit together"},
		"no-answer-at-all":  {map[string]bool{"ok": true}, "do not fit together"},
		"another-way-of-no": {nil, "The answer can't be given right now"},
	}
	playAuth(t, conn, func(q events.VerifyQuery) (api.Answer, error) {
		c := cases[q.Target.Service.String()]
		if c.answer == nil {
			return api.Answer{}, errors.New("the memory is gone")
		}
		return api.JSON(c.answer)
	})
	for name, c := range cases {
		q := signedQuery(s, s.Keys[1])
		q.Target = subtest.NewService(t, name).Target
		answer, err := auth.Verify(t.Context(), q)
		if got := verdict(answer, err); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if err != nil && answer != (events.VerifyAnswer{}) {
			t.Errorf("%s: an answer beside an error: %+v", name, answer)
		}
	}
	patient := auth
	patient.MaxAge = time.Hour
	q := signedQuery(s, s.Keys[1])
	q.Target = subtest.NewService(t, "knows-old-things").Target
	if answer, err := patient.Verify(t.Context(), q); verdict(answer, err) != "accepted current" {
		t.Errorf("within a longer MaxAge: %+v, %v", answer, err)
	}
	q.Message = make([]byte, events.MaxQuery)
	if _, err := auth.Verify(t.Context(), q); err == nil || !strings.Contains(err.Error(), "64 KiB") {
		t.Errorf("a message that is too large: %v", err)
	}
}

// TestAuthVerifierWaits: no longer than it may, and the caller's own end is told from Auth's silence.
func TestAuthVerifierWaits(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	block := make(chan struct{})
	playAuth(t, conn, func(events.VerifyQuery) (api.Answer, error) {
		<-block
		return api.Answer{}, nil
	})
	t.Cleanup(func() { close(block) })
	s := subtest.NewService(t, "waits")
	s.Bind(verifierStart)
	q := signedQuery(s, s.Keys[0])
	_, err := (client.AuthVerifier{Conn: conn, Timeout: 50 * time.Millisecond}).Verify(t.Context(), q)
	if !errors.Is(err, client.ErrNoAuth) {
		t.Errorf("an Auth that says nothing: %v, want ErrNoAuth", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = (client.AuthVerifier{Conn: conn}).Verify(ctx, q)
	if !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrNoAuth) {
		t.Errorf("a caller who has gone: %v, want context.Canceled", err)
	}
}
