// Package apitest calls a process as strangers do: with any HTTP request, and any NATS subject and
// payload. It compares the answers with docs/protocol.md §8. It is for tests only.
package apitest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/testenv"
)

const patience = 20 * time.Second

// Door holds a process's endpoints, over HTTP as the process serves it and over NATS.
type Door struct {
	handler http.Handler
	conn    *nats.Conn
	prefix  []string // the endpoints' subjects
}

// Open serves endpoints at a broker of its own.
func Open(t testing.TB, conn *nats.Conn, endpoints ...api.Endpoint) *Door {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	d := &Door{conn: conn}
	for _, e := range endpoints {
		if e.Subject != "" {
			d.prefix = append(d.prefix, e.Subject)
		}
	}
	service, err := api.Register(context.WithoutCancel(t.Context()), conn, log, api.Service{Name: "test"}, endpoints...)
	if err != nil {
		t.Fatalf("serve over NATS: %v", err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	served, err := process.Listen("127.0.0.1:0", log)
	if err != nil {
		t.Fatalf("serve over HTTP: %v", err)
	}
	served.Ready(nil, api.Routes(log, endpoints...))
	d.handler = served
	return d
}

// OfTheProcess reports whether a path is served for the operator, in addition to the endpoints.
func OfTheProcess(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	switch path {
	case "/metrics", "/readyz", "/healthz", "/livez":
		return true
	}
	return false
}

// Answer is an answer. Its status is 200 if NATS has no error.
type Answer struct {
	Status int
	Body   []byte
}

// BothWays asks over HTTP, and the first endpoint over NATS. A POST at path must get the same
// answer both ways: the same status, and the same result of told. right compares a successful
// answer over NATS with its question.
func (d *Door) BothWays(
	t *testing.T, path, method, target, header string, body []byte,
	right func(t *testing.T, question []byte, a Answer), told func(Answer) string,
) {
	t.Helper()
	a, ok := d.HTTP(t, method, target, header, body)
	b, sent := d.NATS(t, 0, "", body)
	if sent && b.Status == http.StatusOK {
		right(t, body, b)
	}
	if !ok || method != http.MethodPost || target != path {
		return
	}
	if len(body) <= events.MaxQuery && sent && (a.Status != b.Status || told(a) != told(b)) {
		t.Errorf("%q: over HTTP %d %s\nover NATS %d %s", body, a.Status, a.Body, b.Status, b.Body)
	}
}

// HTTP sends a request whose first line and header are text. It returns false if net/http can't
// read them. The answer is a problem document, or one that the protocol documents; it is never a
// fault of the process.
func (d *Door) HTTP(t *testing.T, method, target, header string, body []byte) (a Answer, ok bool) {
	t.Helper()
	text := method + " " + target + " HTTP/1.1\r\nHost: registry.example\r\n" + header + "\r\n\r\n"
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return Answer{}, false
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, r.WithContext(t.Context()))
	a = Answer{w.Code, w.Body.Bytes()}
	mediaType, _, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
	switch {
	case OfTheProcess(r.URL.Path):
	case a.Status >= http.StatusBadRequest:
		a.checkProblem(t, text, mediaType)
	case a.Status == http.StatusNotModified:
		if w.Header().Get("ETag") == "" || len(a.Body) > 0 {
			t.Errorf("%q is not modified: %q", text, a.Body)
		}
	case a.Status >= http.StatusMultipleChoices:
		if to := w.Header().Get("Location"); !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") {
			t.Errorf("%q is sent to %q", text, to)
		}
	case err != nil, a.Status != http.StatusOK, !strings.HasSuffix(mediaType, "json"), !jsontext.Value(a.Body).IsValid():
		t.Errorf("%q: %d, %s, %s", text, a.Status, mediaType, a.Body)
	}
	if w.Header().Get("Cache-Control") == "" && a.Status < 300 && mediaType == "application/json" {
		t.Errorf("%q: nothing says whether the answer may be cached", text)
	}
	return a, true
}

// NATS asks the endpoint of that number, with this text as the end of its subject. It returns false
// if no such subject can be sent.
func (d *Door) NATS(t *testing.T, endpoint uint8, tail string, payload []byte) (a Answer, ok bool) {
	t.Helper()
	subject := d.prefix[int(endpoint)%len(d.prefix)]
	if strings.HasSuffix(subject, ".") {
		subject += tail
	}
	if !sendable(subject) {
		return Answer{}, false
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reply, err := d.conn.RequestWithContext(ctx, subject, payload)
	if errors.Is(err, nats.ErrMaxPayload) {
		return Answer{}, false
	}
	if err != nil {
		t.Fatalf("%q has no answer: %v", subject, err)
	}
	a = Answer{http.StatusOK, reply.Data}
	if code := reply.Header.Get(micro.ErrorCodeHeader); code != "" {
		if a.Status, err = strconv.Atoi(code); err != nil || reply.Header.Get(micro.ErrorHeader) == "" {
			t.Errorf("%q: the error %q, %q", subject, code, reply.Header.Get(micro.ErrorHeader))
		}
		a.checkProblem(t, subject, reply.Header.Get("Content-Type"))
	} else if !jsontext.Value(a.Body).IsValid() {
		t.Errorf("%q: %s", subject, a.Body)
	}
	return a, true
}

// sendable reports whether a NATS server accepts a message on this subject.
func sendable(subject string) bool {
	bad := strings.ContainsFunc(subject, func(r rune) bool { return r <= ' ' || r == 0x7f })
	return !bad && len(subject) < 2048 && !strings.Contains(subject, "..") && !strings.HasSuffix(subject, ".")
}

func (a Answer) checkProblem(t *testing.T, asked, mediaType string) {
	t.Helper()
	var p api.Problem
	err := json.Unmarshal(a.Body, &p, json.RejectUnknownMembers(true))
	if err != nil || p.Status != a.Status || p.Title != http.StatusText(a.Status) || p.Detail == "" || mediaType != "application/problem+json" {
		t.Errorf("%q: %d %s with no such problem document: %s (%v)", asked, a.Status, mediaType, a.Body, err)
	}
	reasoned := a.Status == http.StatusBadRequest || a.Status == http.StatusNotFound && strings.HasPrefix(asked, "omi.")
	if reasoned && p.Reason == "" { // a path of HTTP may be unknown, too
		t.Errorf("%q: a problem document without its reason: %s", asked, a.Body)
	}
	if a.Status >= http.StatusInternalServerError {
		t.Errorf("%q: a fault of ours: %s", asked, a.Body)
	}
}

// Connect returns a connection to a broker of its own.
func Connect(t testing.TB) *nats.Conn {
	t.Helper()
	return testenv.Connect(t, testenv.NewBroker(t).URL())
}
