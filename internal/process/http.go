package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"omiappreg.org/keyrotation/internal/api"
)

const (
	readHeaderWithin = 5 * time.Second
	requestWithin    = 30 * time.Second
	idleFor          = 2 * time.Minute
	shutdownWithin   = 5 * time.Second
	checkWithin      = 2 * time.Second
)

// HTTP serves a process's answers, its metrics and its health. It listens from the start, and says that it is starting
// until the process is ready.
type HTTP struct {
	Metrics *prometheus.Registry
	// Remarks says what is worth knowing of a process that is healthy: lines for a person, below the answer of GET /healthz. It is
	// set before Ready is called. Nil: nothing.
	Remarks func() string

	listener net.Listener
	log      *slog.Logger
	ready    atomic.Pointer[http.Handler]
}

// Listen takes the address. Port 0 is a free one.
func Listen(addr string, log *slog.Logger) (*HTTP, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, Usage(fmt.Errorf("can't serve HTTP on %s (%w): choose another with --http-addr", addr, err))
	}
	h := &HTTP{Metrics: prometheus.NewRegistry(), listener: listener, log: log}
	h.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return h, nil
}

// Addr is where it listens.
func (h *HTTP) Addr() string { return h.listener.Addr().String() }

// Ready serves the endpoints from now on. healthy is asked by GET /healthz, and says what is wrong.
func (h *HTTP) Ready(healthy func(context.Context) error, endpoints ...api.Endpoint) {
	mux := http.NewServeMux()
	api.Mount(mux, h.log, endpoints...)
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.Metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkWithin)
		defer cancel()
		if err := healthy(ctx); err != nil {
			h.log.Warn("not healthy", "error", err)
			http.Error(w, "unhealthy: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		text := "ok\n"
		if h.Remarks != nil {
			text += h.Remarks()
		}
		_, _ = w.Write([]byte(text))
	})
	handler := api.Problems(mux)
	h.ready.Store(&handler)
}

// ServeHTTP implements http.Handler.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if handler := h.ready.Load(); handler != nil {
		(*handler).ServeHTTP(w, r)
		return
	}
	api.WriteProblem(w, api.Unavailable("This process is starting: it waits for the database or the broker."))
}

// Run serves until ctx ends, and then finishes what is under way. It is an [Actor].
func (h *HTTP) Run(ctx context.Context) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: readHeaderWithin, ReadTimeout: requestWithin, WriteTimeout: requestWithin, IdleTimeout: idleFor,
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelWarn),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(h.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownWithin)
	defer cancel()
	if err := server.Shutdown(stopping); err != nil {
		return fmt.Errorf("stop serving HTTP: %w", err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
