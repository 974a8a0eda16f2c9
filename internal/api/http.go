package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"omiappreg.org/keyrotation/events"
)

// Routes returns the handlers of endpoints that HTTP serves, by their patterns for [http.ServeMux].
func Routes(log *slog.Logger, endpoints ...Endpoint) map[string]http.Handler {
	routes := map[string]http.Handler{}
	for _, e := range endpoints {
		if e.Pattern != "" {
			routes[e.Pattern] = handler(log, e)
		}
	}
	return routes
}

// Mount serves routes on mux.
func Mount(mux *http.ServeMux, routes map[string]http.Handler) {
	for pattern, handler := range routes {
		mux.Handle(pattern, handler)
	}
}

func handler(log *slog.Logger, e Endpoint) http.HandlerFunc {
	public := strings.HasPrefix(e.Pattern, http.MethodGet+" ")
	return func(w http.ResponseWriter, r *http.Request) {
		if public { // pages of any origin may read it, and problem documents, too
			w.Header().Set("Access-Control-Allow-Origin", "*")
		}
		call := Call{
			AppID: r.PathValue("app_id"), ServiceID: r.PathValue("service_id"),
			PublicKey: r.PathValue("public_key"), Parameters: r.URL.Query(),
		}
		var err error
		if call.Body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, events.MaxQuery)); err != nil {
			WriteProblem(w, bodyProblem(err))
			return
		}
		answer, err := e.Handle(r.Context(), call)
		if err != nil {
			logFault(r.Context(), log, e.Name, err)
			WriteProblem(w, problemOf(err))
			return
		}
		writeAnswer(w, r, answer)
	}
}

// Problems serves a mux, and answers with a problem document if none of its patterns matches. The
// mux's own answers are text, and it redirects to paths that it doesn't serve either.
func Problems(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		no := &statusOnly{header: http.Header{}}
		handler.ServeHTTP(no, r)
		p := problem(http.StatusNotFound, "", "Nothing is served at this path.")
		if no.status == http.StatusMethodNotAllowed {
			allow := no.header.Get("Allow")
			w.Header().Set("Allow", allow)
			p = problem(no.status, "", "This path takes "+allow+".")
		}
		WriteProblem(w, p)
	})
}

// statusOnly is a response that keeps only the status and the header.
type statusOnly struct {
	header http.Header
	status int
}

// Header implements http.ResponseWriter.
func (s *statusOnly) Header() http.Header { return s.header }

// WriteHeader implements http.ResponseWriter.
func (s *statusOnly) WriteHeader(status int) { s.status = status }

// Write implements http.ResponseWriter.
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }

func bodyProblem(err error) *Problem {
	if over := (*http.MaxBytesError)(nil); errors.As(err, &over) {
		return requestTooLarge()
	}
	return BadRequest(events.MalformedMessage, "The request's body can't be read.")
}

// writeAnswer gives a cacheable answer an ETag, so that asking again costs next to nothing. Other
// answers are signed with their time, so their text differs each time.
func writeAnswer(w http.ResponseWriter, r *http.Request, a Answer) {
	header := w.Header()
	header.Set("Cache-Control", cmp.Or(a.CacheControl, "no-store"))
	header.Set("X-Content-Type-Options", "nosniff")
	if a.CacheControl != "" {
		sum := sha256.Sum256(a.Body)
		tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
		header.Set("ETag", tag)
		if knows(r.Header.Values("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	header.Set("Content-Type", cmp.Or(a.ContentType, "application/json"))
	_, _ = w.Write(a.Body) // if it fails, the client is gone
}

// knows reports whether an If-None-Match (RFC 9110 §13.1.2) names the tag. Our tags contain no
// comma.
func knows(fields []string, tag string) bool {
	for known := range strings.SplitSeq(strings.Join(fields, ","), ",") {
		if known = strings.TrimSpace(known); known == "*" || strings.TrimPrefix(known, "W/") == tag {
			return true
		}
	}
	return false
}

// WriteProblem answers an HTTP request with a problem document.
func WriteProblem(w http.ResponseWriter, p *Problem) {
	header := w.Header()
	header.Set("Content-Type", "application/problem+json")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if p.RetryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(p.encode())
}

// logFault logs errors that are our fault, and not a caller's.
func logFault(ctx context.Context, log *slog.Logger, endpoint string, err error) {
	problem := problemOf(err)
	if problem.Status < http.StatusInternalServerError || ctx.Err() != nil {
		return
	}
	level := slog.LevelWarn
	// the caller was told everything; a handler that answers so on purpose logs the cause itself
	if err.Error() == problem.Error() {
		level = slog.LevelDebug
	}
	log.Log(ctx, level, "lookup failed", "endpoint", endpoint, "error", err)
}
