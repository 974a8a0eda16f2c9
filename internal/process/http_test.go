package process_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestHTTPStarting: a process that is not ready says so in the protocol's words (docs/protocol.md
// §8), and then answers.
func TestHTTPStarting(t *testing.T) {
	t.Parallel()
	h, err := process.Listen("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
		return w
	}
	starting := ask("/v1/registry")
	if starting.Code != http.StatusServiceUnavailable || starting.Header().Get("Content-Type") != "application/problem+json" ||
		!strings.Contains(starting.Body.String(), `"status":503`) {
		t.Errorf("starting: %d %v %s", starting.Code, starting.Header(), starting.Body)
	}
	for path, want := range map[string]string{
		"/readyz": "503 database: this process is starting: it waits for its database\n", "/livez": "200 ok\n",
		"/healthz?json": `503 {"ready":false,"live":true,"parts":[{"name":"database","ready":false,"problem":"this process is starting: it waits for its database"}]}` + "\n",
	} {
		if a := ask(path); fmt.Sprint(a.Code, " ", a.Body) != want {
			t.Errorf("starting: %s is %d %s, want %s", path, a.Code, a.Body, want)
		}
	}
	var restart atomic.Bool
	h.Ready([]health.Part{
		{Name: health.Broker, Check: func(context.Context) error { return health.AsRemark(errors.New("the broker is away")) }},
		{Name: health.Database, Check: func(context.Context) error {
			if restart.Load() {
				return &health.Problem{Text: "the file was replaced", Restart: true}
			}
			return nil
		}},
	})
	if a := ask("/readyz"); a.Code != http.StatusOK || a.Body.String() != "ok\nbroker: the broker is away\n" {
		t.Errorf("ready: %d %s", a.Code, a.Body)
	}
	if a := ask("/metrics"); !strings.Contains(a.Body.String(), "\ngo_build_info{") {
		t.Errorf("the metrics don't say which version this is: %s", a.Body)
	}
	restart.Store(true)
	testenv.Eventually(t, time.Minute, "the database's file is missed", func() error {
		if a := ask("/readyz"); a.Code != http.StatusServiceUnavailable || a.Body.String() != "database: the file was replaced\n" {
			return fmt.Errorf("%d %s", a.Code, a.Body)
		}
		return nil
	})
	if a := ask("/livez"); a.Code != http.StatusServiceUnavailable || a.Body.String() != "database: the file was replaced\n" {
		t.Errorf("live: %d %s", a.Code, a.Body)
	}
	restart.Store(false)
	testenv.Eventually(t, time.Minute, "it is ready again", func() error {
		if a := ask("/healthz"); a.Code != http.StatusOK {
			return fmt.Errorf("%d %s", a.Code, a.Body)
		}
		return nil
	})
	if nowhere := ask("/nowhere"); nowhere.Code != http.StatusNotFound || !strings.Contains(nowhere.Body.String(), `"status":404`) {
		t.Errorf("a path that is not served: %d %s", nowhere.Code, nowhere.Body)
	}
}
