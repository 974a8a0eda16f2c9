package process_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/process"
)

// TestHTTPStarting: a process that is not ready says so in the protocol's words (docs/protocol.md §8), and then answers.
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
	h.Ready(func(context.Context) error { return nil })
	if ready := ask("/healthz"); ready.Code != http.StatusOK {
		t.Errorf("ready: %d %s", ready.Code, ready.Body)
	}
	if nowhere := ask("/nowhere"); nowhere.Code != http.StatusNotFound || !strings.Contains(nowhere.Body.String(), `"status":404`) {
		t.Errorf("a path that is not served: %d %s", nowhere.Code, nowhere.Body)
	}
}
