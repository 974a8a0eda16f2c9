package api_test

import (
	"context"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/testenv"
)

const patience = 30 * time.Second

// endpoints answer with what they were asked, or fail as the body says.
func endpoints() []api.Endpoint {
	return []api.Endpoint{
		{
			Name: "thing", Subject: "test.thing.", Pattern: "GET /apps/{app_id}/services/{service_id}",
			Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
				target, err := c.Target()
				if err != nil {
					return api.Answer{}, err
				}
				return api.JSON(map[string]string{"target": target.String()})
			},
		},
		{
			Name: "ask", Subject: "test.ask", Pattern: "POST /ask",
			Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
				switch string(c.Body) {
				case "refuse":
					return api.Answer{}, &events.Refusal{Reason: events.InvalidField, Detail: "No."}
				case "fail":
					return api.Answer{}, errors.New("password of the database")
				case "panic":
					panic("poison")
				case "unknown":
					return api.Answer{}, api.UnknownService("Nobody knows.", []byte(`{"signed":true}`))
				}
				return api.JSON("yes")
			},
		},
	}
}

type answer struct {
	Status int           `json:"status"`
	Detail string        `json:"detail"`
	Reason events.Reason `json:"reason"`
}

// over lists the two ways to ask; each returns the status (200 where NATS has no error) and the
// body.
func over(t *testing.T) map[string]func(path, subject, body string) (int, []byte) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	mux := http.NewServeMux()
	api.Mount(mux, api.Routes(log, endpoints()...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	service, err := api.Register(t.Context(), nc, log, api.Service{Name: "test"}, endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	return map[string]func(path, subject, body string) (int, []byte){
		"http": func(path, _, body string) (int, []byte) {
			method := http.MethodGet
			if body != "" {
				method = http.MethodPost
			}
			request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			response, err := server.Client().Do(request)
			if err != nil {
				return 0, nil // the handler panics: this connection ends, the server does not
			}
			defer func() { _ = response.Body.Close() }()
			content, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			return response.StatusCode, content
		},
		"nats": func(_, subject, body string) (int, []byte) {
			wait := patience
			if body == "panic" {
				wait = 50 * time.Millisecond // no answer comes
			}
			reply, err := nc.Request(subject, []byte(body), wait)
			if err != nil {
				return 0, nil
			}
			if reply.Header.Get("Nats-Service-Error-Code") == "" {
				return http.StatusOK, reply.Data
			}
			var a answer
			if err := json.Unmarshal(reply.Data, &a); err != nil {
				t.Fatal(err)
			}
			return a.Status, reply.Data
		},
	}
}

func TestBothWays(t *testing.T) {
	t.Parallel()
	for name, ask := range over(t) {
		for _, c := range []struct {
			path, subject, body string
			status              int
			want                string
		}{
			{"/apps/org.example/services/cms", "test.thing.org.example.cms", "", 200, `{"target":"org.example.cms"}`},
			{"/apps/org.example/services/CMS", "test.thing.org.example.CMS", "", 400, `"reason":"invalid_field"`},
			{"/apps/org/services/cms", "test.thing.org.cms", "", 400, `"reason":"invalid_field"`},
			{"/ask", "test.ask", "please", 200, `"yes"`},
			{"/ask", "test.ask", "refuse", 400, `"reason":"invalid_field"`},
			{"/ask", "test.ask", "unknown", 404, `"reason":"unknown_service","statement":{"signed":true}`},
			{"/ask", "test.ask", strings.Repeat("x", events.MaxQuery+1), 413, `"reason":"malformed_message"`},
			{"/ask", "test.ask", "fail", 503, "try again"},
			{"/ask", "test.ask", "panic", 0, ""},
			{"/ask", "test.ask", "please", 200, `"yes"`}, // and the service still answers
		} {
			status, body := ask(c.path, c.subject, c.body)
			if status != c.status || !strings.Contains(string(body), c.want) {
				t.Errorf("%s %s %q: %d %s, want %d with %q", name, c.path, c.body, status, body, c.status, c.want)
			}
			if strings.Contains(string(body), "password") {
				t.Errorf("%s: an answer tells our insides: %s", name, body)
			}
		}
	}
}

// TestStats: `nats micro` finds the service by its own subjects, and shows the results of an
// endpoint's calls.
func TestStats(t *testing.T) {
	t.Parallel()
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	var took atomic.Int64
	slow := api.Endpoint{Name: "slow", Subject: "test.slow", Handle: func(context.Context, api.Call) (api.Answer, error) {
		began := time.Now()
		for time.Since(began) < 2*time.Millisecond {
			runtime.Gosched()
		}
		took.Add(int64(time.Since(began)))
		return api.JSON("yes")
	}}
	service, err := api.Register(t.Context(), nc, slog.New(slog.DiscardHandler), api.Service{Name: "test"}, append(endpoints(), slow)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	for _, body := range []string{"please", "refuse", "fail", "unknown", "please"} {
		if _, err := nc.Request("test.ask", []byte(body), patience); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, err := nc.Request("test.slow", nil, patience); err != nil {
			t.Fatal(err)
		}
	}
	var info micro.Info
	asked(t, nc, "$SRV.INFO.test", &info)
	if info.Type != micro.InfoResponseType || len(info.Endpoints) != 3 || info.Endpoints[1].Subject != "test.ask" || info.Metadata == nil {
		t.Errorf("it describes itself as %+v", info)
	}
	for _, of := range []string{"", ".test", ".test." + info.ID} {
		var ping micro.Ping
		asked(t, nc, "$SRV.PING"+of, &ping)
		if ping.Type != micro.PingResponseType || ping.ID != info.ID || ping.Name != "test" || ping.Version != "0.0.0-devel" {
			t.Errorf("pinged at %q, it says %+v", of, ping)
		}
		testenv.Eventually(t, patience, "all are counted", func() error {
			var s micro.Stats
			asked(t, nc, "$SRV.STATS"+of, &s)
			if s.Type != micro.StatsResponseType || s.ID != info.ID || len(s.Endpoints) != 3 || s.Started.IsZero() {
				return fmt.Errorf("%+v", s)
			}
			thing, ask, slow := s.Endpoints[0], s.Endpoints[1], s.Endpoints[2]
			if thing.NumRequests != 0 || ask.NumRequests != 5 || ask.NumErrors != 3 || ask.LastError != "404:Not Found" ||
				slow.NumRequests != 3 || slow.NumErrors != 0 || slow.LastError != "" ||
				int64(slow.ProcessingTime) < took.Load() || slow.AverageProcessingTime != slow.ProcessingTime/3 {
				return fmt.Errorf("%+v, %+v, %+v", thing, ask, slow)
			}
			return nil
		})
	}
}

// asked sends an empty question and reads its answer as nats.go's own package would.
func asked(t *testing.T, nc *nats.Conn, subject string, into any) {
	t.Helper()
	reply, err := nc.Request(subject, nil, patience)
	if err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	if err := stdjson.Unmarshal(reply.Data, into); err != nil {
		t.Fatalf("%s: %s: %v", subject, reply.Data, err)
	}
}

// TestAnswerTooLarge: a caller who asks for more than a message may hold is told so.
func TestAnswerTooLarge(t *testing.T) {
	t.Parallel()
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	large := api.Endpoint{Name: "large", Subject: "test.large", Handle: func(context.Context, api.Call) (api.Answer, error) {
		return api.Answer{Body: make([]byte, nc.MaxPayload()+1)}, nil
	}}
	service, err := api.Register(t.Context(), nc, slog.New(slog.DiscardHandler), api.Service{Name: "test"}, large)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	reply, err := nc.Request("test.large", nil, patience)
	if err != nil || reply.Header.Get("Nats-Service-Error-Code") != "413" {
		t.Errorf("%v, %v", reply, err)
	}
}

// TestManyProblems is for the race detector: answering and counting run concurrently.
func TestManyProblems(t *testing.T) {
	t.Parallel()
	ask := over(t)["nats"]
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for range 200 {
				if status, _ := ask("", "test.ask", "unknown"); status != http.StatusNotFound {
					t.Errorf("status %d", status)
				}
			}
		})
	}
	asking.Wait()
}

func TestHTTPLimits(t *testing.T) {
	t.Parallel()
	ask := over(t)["http"]
	if status, body := ask("/ask", "", strings.Repeat("x", events.MaxQuery+1)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a body over the limit: %d %s", status, body)
	}
	if status, _ := ask("/nowhere", "", ""); status != http.StatusNotFound {
		t.Errorf("an unknown path: %d", status)
	}
}

// TestNoAnswerElsewhere: a caller names the subject of the answer, which is published with the
// rights of the answering party. The subject must not have a meaning of its own.
func TestNoAnswerElsewhere(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	service, err := api.Register(t.Context(), nc, log, api.Service{Name: "test"}, endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	for _, reply := range []string{"omi.v1.invalidations.org.example.shop.cms", "omi.v1.requests.rotation.org.example.shop.cms", "$KV.x", "$SRV.PING"} {
		heard, err := nc.SubscribeSync(reply)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if err := nc.PublishRequest("test.ask", reply, []byte("ask")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := nc.Request("test.ask", []byte("ask"), patience); err != nil {
			t.Fatalf("an honest question: %v", err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		if n, _, _ := heard.Pending(); n > 0 {
			t.Errorf("%d answers to %s", n, reply)
		}
	}
}

// TestKept: an answer that may be kept has a tag, by which it can be asked for again; other answers
// have none. Pages of any origin may read the answer to a GET.
func TestKept(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	api.Mount(mux, api.Routes(slog.New(slog.DiscardHandler), append(endpoints(), api.Endpoint{
		Name: "kept", Pattern: "GET /kept", Handle: func(context.Context, api.Call) (api.Answer, error) {
			return api.Answer{Body: []byte(`"kept"`), CacheControl: "public, max-age=3"}, nil
		},
	})...))
	do := func(method, path, known string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader("please"))
		if known != "" {
			r.Header.Set("If-None-Match", known)
		}
		mux.ServeHTTP(w, r)
		return w
	}
	tag := do(http.MethodGet, "/kept", "").Header().Get("ETag")
	for known, status := range map[string]int{
		"": 200, `"other"`: 200, tag: 304, "W/" + tag: 304, `"other", ` + tag: 304, "*": 304, strings.Trim(tag, `"`): 200,
	} {
		w := do(http.MethodGet, "/kept", known)
		if w.Code != status || w.Header().Get("ETag") != tag || w.Header().Get("Cache-Control") != "public, max-age=3" || (w.Body.Len() == 0) != (status == 304) {
			t.Errorf("If-None-Match: %s: %d %v %s", known, w.Code, w.Header(), w.Body)
		}
	}
	for _, c := range []struct{ method, path, origin string }{
		{http.MethodGet, "/kept", "*"}, {http.MethodGet, "/apps/org.example/services/cms", "*"}, {http.MethodGet, "/apps/org.example/services/CMS", "*"},
		{http.MethodPost, "/ask", ""},
	} {
		w := do(c.method, c.path, "")
		if got := w.Header().Get("Access-Control-Allow-Origin"); got != c.origin || c.path != "/kept" && w.Header().Get("ETag") != "" {
			t.Errorf("%s %s: %v", c.method, c.path, w.Header())
		}
	}
}

// TestProblems: a path without an endpoint has a problem document, too, and paths that are served
// with another spelling are found.
func TestProblems(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	api.Mount(mux, api.Routes(slog.New(slog.DiscardHandler), endpoints()...))
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{http.MethodPost, "/ask", http.StatusOK, ""},
		{http.MethodHead, "/apps/org.example/services/cms", http.StatusOK, ""},
		{http.MethodGet, "/ask", http.StatusMethodNotAllowed, "POST"},
		{http.MethodDelete, "/apps/org.example/services/cms", http.StatusMethodNotAllowed, "GET, HEAD"},
		{http.MethodGet, "/nowhere", http.StatusNotFound, ""},
		{http.MethodGet, "//nowhere/../else", http.StatusNotFound, ""},
		{http.MethodGet, "//apps/org.example/services/cms", http.StatusTemporaryRedirect, ""},
	} {
		w := httptest.NewRecorder()
		api.Problems(mux).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, strings.NewReader("please")))
		if w.Code != c.status || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: %d, allow %q; want %d, %q", c.method, c.path, w.Code, w.Header().Get("Allow"), c.status, c.allow)
		}
		var a answer
		if w.Code >= http.StatusBadRequest && (w.Header().Get("Content-Type") != "application/problem+json" ||
			json.Unmarshal(w.Body.Bytes(), &a) != nil || a.Status != w.Code || a.Detail == "") {
			t.Errorf("%s %s: %s", c.method, c.path, w.Body)
		}
	}
}
