package client_test

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

const sigSubject = "billing.usage.record"

func signedMsg(t testing.TB, w *sigWorld) *nats.Msg {
	t.Helper()
	m := nats.NewMsg(sigSubject)
	m.Reply, m.Data = "_INBOX.1", []byte(sigBody)
	m.Header.Set("content-type", "application/json") // NATS keeps it as it is
	if err := client.SignMsg(w.id, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMsgTampering changes one thing at a time of a message that would pass.
func TestMsgTampering(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*nats.Msg)
		want   events.Reason
	}{
		"nothing":       {func(*nats.Msg) {}, ""},
		"reply":         {func(m *nats.Msg) { m.Reply = "_INBOX.2" }, ""},
		"another field": {func(m *nats.Msg) { m.Header.Set("Nats-Msg-Id", "1") }, ""},
		"subject":       {func(m *nats.Msg) { m.Subject = "billing.usage.erase" }, events.InvalidSignature},
		"payload":       {func(m *nats.Msg) { m.Data = []byte("{}") }, client.DigestMismatch},
		"no payload":    {func(m *nats.Msg) { m.Data = nil }, client.DigestMismatch},
		"no digest":     {func(m *nats.Msg) { m.Header.Del("Content-Digest") }, client.MalformedSignature},
		"content type":  {func(m *nats.Msg) { m.Header["content-type"] = []string{"text/plain"} }, events.InvalidSignature},
		"content type, once more": {
			func(m *nats.Msg) { m.Header.Set("Content-Type", "text/plain") }, client.MalformedSignature,
		},
		"Signature-Input, once more": {
			func(m *nats.Msg) { m.Header["signature-input"] = m.Header["Signature-Input"] }, client.MalformedSignature,
		},
		"no header": {func(m *nats.Msg) { m.Header = nil }, client.Unsigned},
		"signed for HTTP": {func(m *nats.Msg) {
			m.Header.Set("Signature-Input", strings.Replace(m.Header.Get("Signature-Input"), "omi-nats", "omi", 1))
		}, client.Unsigned},
		"without @subject": {func(m *nats.Msg) {
			m.Header.Set("Signature-Input", strings.Replace(m.Header.Get("Signature-Input"), `"@subject" `, "", 1))
		}, client.IncompleteSignature},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSigWorld(t)
			w.cfg.Now = nil
			m := signedMsg(t, w)
			c.change(m)
			caller, err := client.NewGuard(w.cfg).VerifyMsg(t.Context(), m)
			if sigReason(err) != c.want || (err == nil) != (caller.Target == w.id.target) {
				t.Errorf("%v, %v, want %q", caller.Target, err, c.want)
			}
		})
	}
}

func TestMsgReplayAndSkew(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	w.clock.Store(time.Now().Unix())
	guard := client.NewGuard(w.cfg)
	m := signedMsg(t, w)
	if _, err := guard.VerifyMsg(t.Context(), m); err != nil {
		t.Error(err)
	}
	if _, err := guard.VerifyMsg(t.Context(), m); sigReason(err) != events.NonceReused {
		t.Errorf("again: %v", err)
	}
	w.clock.Add(100)
	if _, err := guard.VerifyMsg(t.Context(), signedMsg(t, w)); sigReason(err) != events.TimestampOutOfWindow {
		t.Errorf("100 s later: %v", err)
	}
	w.keys.away = errSigAway
	w.clock.Add(-100)
	if _, err := guard.VerifyMsg(t.Context(), signedMsg(t, w)); sigReason(err) != events.Reason(errSigAway.Error()) {
		t.Errorf("with the Auth Provider away: %v", err)
	}
}

func TestSignMsgFails(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	for name, m := range map[string]*nats.Msg{
		"a subject that is not ASCII": {Subject: "billing.ä"},
		"a field with a line end":     {Subject: sigSubject, Header: nats.Header{"Content-Type": {"a\nb"}}},
		"two spellings":               {Subject: sigSubject, Header: nats.Header{"Content-Type": {"a"}, "content-type": {"b"}}},
	} {
		if err := client.SignMsg(w.id, m); err == nil {
			t.Errorf("%s is signed: %v", name, m.Header)
		}
	}
	m := &nats.Msg{Subject: sigSubject, Header: nats.Header{"Trace": {"1"}}}
	err := client.SignMsg(w.id, m, "trace", "absent")
	if err != nil || !strings.Contains(m.Header.Get("Signature-Input"), `"trace")`) {
		t.Errorf("%v %v", err, m.Header)
	}
	want := []string{"Content-Digest", "Signature", "Signature-Input", "Trace"}
	if got := slices.Sorted(maps.Keys(m.Header)); !slices.Equal(got, want) {
		t.Errorf("the header has %v, want %v", got, want)
	}
}

// TestSignedMicro asks a micro service over a broker.
func TestSignedMicro(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	w.cfg.Now = nil
	guard := client.NewGuard(w.cfg)
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	service, err := micro.AddService(nc, micro.Config{Name: "usage", Version: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	handler := guard.RequireSignedMsg(t.Context(), func(ctx context.Context, r micro.Request) {
		caller, _ := client.CallerFrom(ctx)
		_ = r.Respond([]byte(caller.Target.String() + " " + string(r.Data())))
	})
	if err := service.AddEndpoint("record", handler, micro.WithEndpointSubject("billing.usage.*")); err != nil {
		t.Fatal(err)
	}
	ask := func(m *nats.Msg) *nats.Msg {
		t.Helper()
		answer, err := nc.RequestMsg(m, playedWithin)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	m := nats.NewMsg(sigSubject)
	m.Data = []byte(sigBody)
	m.Header.Set("Content-Type", " text/plain ") // NATS trims it
	if err := client.SignMsg(w.id, m); err != nil {
		t.Fatal(err)
	}
	if answer := ask(m); string(answer.Data) != sigTarget+" "+sigBody {
		t.Errorf("%s %v", answer.Data, answer.Header)
	}
	for want, m := range map[string]*nats.Msg{"nonce_reused": m, "unsigned": nats.NewMsg(sigSubject)} {
		answer := ask(m)
		if answer.Header.Get(micro.ErrorCodeHeader) != "401" || !strings.Contains(string(answer.Data), `"reason":"`+want+`"`) {
			t.Errorf("%s: %s %v", want, answer.Data, answer.Header)
		}
	}
	m = signedMsg(t, w)
	m.Subject = "billing.usage.erase"
	if answer := ask(m); !strings.Contains(string(answer.Data), `"reason":"invalid_signature"`) {
		t.Errorf("sent to another subject: %s", answer.Data)
	}
}

// TestMsgIsNoRequest holds the two forms apart: what is signed for one is nothing for the other.
func TestMsgIsNoRequest(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	m := w.byHand(unsignedPost(), append([]string{"@subject"}, sigComponents...), sigParams)
	if _, reason := m.to(t, w.guarded()); reason != client.MalformedSignature {
		t.Errorf("a request with a subject: %q", reason)
	}
	post := unsignedPost()
	post.uri = sigSubject
	params := strings.Replace(sigParams, `"omi"`, `"omi-nats"`, 1)
	post = w.byHand(post, []string{"@subject", "content-digest", "content-type"}, params)
	msg := &nats.Msg{Subject: sigSubject, Header: nats.Header(post.header), Data: []byte(sigBody)}
	if _, err := client.NewGuard(w.cfg).VerifyMsg(t.Context(), msg); err != nil {
		t.Errorf("signed by hand: %v", err)
	}
	post.uri = "/" + sigSubject
	if status, reason := post.to(t, w.guarded()); status != http.StatusUnauthorized || reason != client.Unsigned {
		t.Errorf("a message's signature on a request: %d %q", status, reason)
	}
}
