package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

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
					return api.Answer{}, api.NotFound("Nobody knows.")
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

// over lists the two ways to ask; each returns the status (200 where NATS has no error) and the body.
func over(t *testing.T) map[string]func(path, subject, body string) (int, []byte) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	mux := http.NewServeMux()
	api.Mount(mux, log, endpoints()...)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	service, err := api.Register(t.Context(), nc, log, api.Service{Name: "test", Version: "1.0.0"}, endpoints()...)
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
				wait = 50 * time.Millisecond // nobody answers
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
			{"/apps/org.example/services/CMS", "test.thing.org.example.CMS", "", 400, "a service id is one label"},
			{"/apps/org/services/cms", "test.thing.org.cms", "", 400, "an app id is"},
			{"/ask", "test.ask", "please", 200, `"yes"`},
			{"/ask", "test.ask", "refuse", 400, `"reason":"invalid_field"`},
			{"/ask", "test.ask", "unknown", 404, "Nobody knows."},
			{"/ask", "test.ask", "fail", 503, "try again"},
			{"/ask", "test.ask", "panic", 0, ""},
			{"/ask", "test.ask", "please", 200, `"yes"`}, // and it goes on
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

// TestStats: what micro tells of an endpoint has what became of its calls.
func TestStats(t *testing.T) {
	t.Parallel()
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	service, err := api.Register(t.Context(), nc, slog.New(slog.DiscardHandler), api.Service{Name: "test", Version: "1.0.0"}, endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	for _, body := range []string{"please", "unknown", "refuse", "please"} {
		if _, err := nc.Request("test.ask", []byte(body), patience); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, patience, "all are counted", func() error {
		for _, e := range service.Stats().Endpoints {
			var s api.Stats
			if err := json.Unmarshal(e.Data, &s); err != nil {
				t.Fatal(err)
			}
			if e.Name == "ask" && (s.Answered != 4 || s.Errors != 2 || s.AverageProcessingTime <= 0) || e.Name == "thing" && s.Answered != 0 {
				return fmt.Errorf("%s: %+v", e.Name, s)
			}
		}
		return nil
	})
}

// TestAnswerTooLarge: whoever asks for more than a message may hold is told so.
func TestAnswerTooLarge(t *testing.T) {
	t.Parallel()
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	large := api.Endpoint{Name: "large", Subject: "test.large", Handle: func(context.Context, api.Call) (api.Answer, error) {
		return api.Answer{Body: make([]byte, nc.MaxPayload()+1)}, nil
	}}
	service, err := api.Register(t.Context(), nc, slog.New(slog.DiscardHandler), api.Service{Name: "test", Version: "1.0.0"}, large)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	reply, err := nc.Request("test.large", nil, patience)
	if err != nil || reply.Header.Get("Nats-Service-Error-Code") != "413" {
		t.Errorf("%v, %v", reply, err)
	}
}

// TestManyProblems is for the race detector: what answers a request runs beside what counts it.
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

// TestNoAnswerElsewhere: a caller names the subject of the answer, which is published with the rights of who answers. It must not
// be one that means something.
func TestNoAnswerElsewhere(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	service, err := api.Register(t.Context(), nc, log, api.Service{Name: "test", Version: "1.0.0"}, endpoints()...)
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

// TestProblems: what no endpoint takes has a problem document too, and paths that are served with another spelling are found.
func TestProblems(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	api.Mount(mux, slog.New(slog.DiscardHandler), endpoints()...)
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
