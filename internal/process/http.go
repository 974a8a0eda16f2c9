package process

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/health"
)

const (
	readHeaderWithin = 5 * time.Second
	requestWithin    = 30 * time.Second
	idleFor          = 2 * time.Minute
	shutdownWithin   = 5 * time.Second
	// checkEach is how often a process checks its parts by itself, for the log and the metric.
	checkEach = 5 * time.Second
)

// Web says where a process serves HTTP, and to whom: flags for a kong grammar. The program sets the
// kong variable http_addr.
type Web struct {
	Addr     string `name:"http-addr" env:"OMI_HTTP_ADDR" default:"${http_addr}" placeholder:"HOST:PORT" help:"Where to answer over HTTP (${default})."`
	Admin    string `name:"admin-addr" env:"OMI_ADMIN_ADDR" placeholder:"HOST:PORT" help:"Where to serve /metrics, /readyz and /livez, without TLS (at --http-addr)."`
	Cert     string `name:"http-cert" env:"OMI_HTTP_CERT" placeholder:"FILE" help:"Serve HTTPS at --http-addr with this certificate and its chain, PEM."`
	Key      string `name:"http-key" env:"OMI_HTTP_KEY" placeholder:"FILE" help:"The certificate's private key, PEM, mode 0600."`
	ClientCA string `name:"http-client-ca" env:"OMI_HTTP_CLIENT_CA" placeholder:"FILE" help:"Serve only clients with a certificate of these authorities, PEM."`
}

// HTTP serves a process's answers, its metrics and its health. It listens from the start, and says
// that the process is starting until it is ready.
type HTTP struct {
	Metrics *prometheus.Registry
	// Remarks returns lines for a person about a process that is healthy, shown below the answer of
	// GET /readyz. Set it before Ready is called. Nil means that there are none.
	Remarks func() string

	listener, admin net.Listener // admin is nil if one address serves everything
	certificate     *certificate // nil without TLS
	log             *slog.Logger
	ready           atomic.Pointer[served]
	checks          chan *health.Checker // of a process that is ready, for Run
}

// served is what each address of a ready process serves. If there is only one address, both are the
// same.
type served struct{ public, admin http.Handler }

// starting says what a process without parts is waiting for.
const starting = "this process is starting: it waits for its database"

// Listen opens an address, without TLS. Port 0 means a free one.
func Listen(addr string, log *slog.Logger) (*HTTP, error) { return Web{Addr: addr}.Listen(log) }

// Listen opens the addresses.
func (w Web) Listen(log *slog.Logger) (*HTTP, error) {
	h := &HTTP{Metrics: prometheus.NewRegistry(), log: log, checks: make(chan *health.Checker, 1)}
	h.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewBuildInfoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if h.certificate, err = w.certificate(log); err != nil {
		return nil, err
	}
	if h.listener, err = net.Listen("tcp", w.Addr); err != nil {
		return nil, Usage(fmt.Errorf("can't serve HTTP on %s (%w): choose another with --http-addr", w.Addr, err))
	}
	if w.Admin == "" {
		return h, nil
	}
	if h.admin, err = net.Listen("tcp", w.Admin); err != nil {
		_ = h.listener.Close() // nothing came of it
		return nil, Usage(fmt.Errorf("can't serve metrics on %s (%w): choose another with --admin-addr", w.Admin, err))
	}
	return h, nil
}

// Addr returns the address on which it listens.
func (h *HTTP) Addr() string { return h.listener.Addr().String() }

// AdminAddr returns the address that serves metrics and health.
func (h *HTTP) AdminAddr() string {
	if h.admin == nil {
		return h.Addr()
	}
	return h.admin.Addr().String()
}

// Ready serves the routes from now on, and shows the state of these parts at GET /readyz.
func (h *HTTP) Ready(parts []health.Part, routes ...map[string]http.Handler) {
	checker := health.New(h.log, parts...)
	h.Metrics.MustRegister(checker)
	mux := http.NewServeMux()
	for _, some := range routes {
		api.Mount(mux, some)
	}
	admin := mux
	if h.admin != nil {
		admin = http.NewServeMux()
	}
	admin.Handle("GET /metrics", promhttp.HandlerFor(h.Metrics, promhttp.HandlerOpts{}))
	readyz := func(w http.ResponseWriter, r *http.Request) {
		report, err := checker.Report(r.Context())
		if err != nil {
			return // the client is gone
		}
		if h.Remarks != nil {
			report.Remarks = strings.FieldsFunc(h.Remarks(), func(r rune) bool { return r == '\n' })
		}
		report.ServeReady(w, r)
	}
	admin.HandleFunc("GET /readyz", readyz)
	admin.HandleFunc("GET /healthz", readyz)
	admin.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { checker.Last().ServeLive(w, r) })
	h.ready.Store(&served{api.Problems(mux), api.Problems(admin)})
	h.checks <- checker
}

// watch checks the parts as soon as they are known.
func (h *HTTP) watch(ctx context.Context) {
	select {
	case checker := <-h.checks:
		checker.Watch(ctx, checkEach)
	case <-ctx.Done():
	}
}

// Announce logs the addresses.
func (h *HTTP) Announce() {
	h.log.Info("serving HTTP", "addr", h.Addr(), "tls", h.certificate != nil, "admin_addr", h.AdminAddr())
}

// ServeHTTP implements http.Handler: the public address serves it.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch s := h.ready.Load(); {
	case s != nil:
		s.public.ServeHTTP(w, r)
	case h.admin == nil:
		serveStarting(w, r)
	default:
		api.WriteProblem(w, api.Unavailable(problemStarting))
	}
}

// serveAdmin answers at the address of metrics and health.
func (h *HTTP) serveAdmin(w http.ResponseWriter, r *http.Request) {
	if s := h.ready.Load(); s != nil {
		s.admin.ServeHTTP(w, r)
		return
	}
	serveStarting(w, r)
}

const problemStarting = "This process is starting: it waits for the database or the broker."

// serveStarting answers for a process that has no parts yet.
func serveStarting(w http.ResponseWriter, r *http.Request) {
	report := health.Starting(health.Database, starting)
	switch r.URL.Path {
	case "/livez":
		report.ServeLive(w, r)
	case "/readyz", "/healthz":
		report.ServeReady(w, r)
	default:
		api.WriteProblem(w, api.Unavailable(problemStarting))
	}
}

// Run serves until ctx ends, and then finishes the requests under way. It is an [Actor].
func (h *HTTP) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx) // if one address fails, the other ends with it
	defer cancel()
	go h.watch(ctx)
	admin := make(chan error, 1)
	if h.admin == nil {
		admin <- nil
	} else {
		go func() { admin <- h.runOn(ctx, h.admin, http.HandlerFunc(h.serveAdmin), nil) }()
	}
	err := h.runOn(ctx, h.listener, h, h.certificate)
	cancel()
	return errors.Join(err, <-admin)
}

func (h *HTTP) runOn(ctx context.Context, listener net.Listener, handler http.Handler, with *certificate) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: readHeaderWithin, ReadTimeout: requestWithin, WriteTimeout: requestWithin, IdleTimeout: idleFor,
		ErrorLog: log.New(faults{h.log}, "", 0),
	}
	serve := func() error { return server.Serve(listener) }
	if with != nil {
		server.TLSConfig = with.server()
		serve = func() error { return server.ServeTLS(listener, "", "") }
	}
	done := make(chan error, 1)
	go func() { done <- serve() }()
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

// faults logs the messages of net/http. It ignores failed handshakes: the client causes them, and
// anyone could fill the log with them.
type faults struct{ log *slog.Logger }

// Write implements [io.Writer].
func (f faults) Write(line []byte) (int, error) {
	text, level := strings.TrimSpace(string(line)), slog.LevelWarn
	if strings.HasPrefix(text, "http: TLS handshake error") {
		level = slog.LevelDebug
	}
	f.log.Log(context.Background(), level, "serve HTTP", "fault", text)
	return len(line), nil
}

// certificate is what a process serves TLS with. It looks at its files in each handshake: to renew
// certificates, replace the files; no restart is needed.
type certificate struct {
	flags Web
	log   *slog.Logger

	mu     sync.Mutex
	read   [3]stamp // the files as they were when they were last read
	config *tls.Config
}

// stamp shows whether a file has changed.
type stamp struct {
	changed time.Time
	size    int64
}

// certificate reads the files that the flags name; it returns nil if they name none.
func (w Web) certificate(log *slog.Logger) (*certificate, error) {
	switch {
	case w.Cert == "" && w.Key == "" && w.ClientCA == "":
		return nil, nil // no certificate is no error
	case w.Cert == "" || w.Key == "":
		return nil, Usagef("--http-cert and --http-key belong together, and --http-client-ca needs both: give the certificate and its private key")
	}
	c := &certificate{flags: w, log: log}
	c.read = c.stamps()
	TendKeys(log, w.Key)
	var err error
	c.config, err = c.load()
	return c, err
}

func (c *certificate) stamps() (all [3]stamp) {
	for i, path := range []string{c.flags.Cert, c.flags.Key, c.flags.ClientCA} {
		if info, err := os.Stat(path); err == nil { // otherwise reading it gives the error
			all[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return all
}

func (c *certificate) load() (*tls.Config, error) {
	if err := checkMode("--http-key", c.flags.Key); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(c.flags.Cert, c.flags.Key)
	if err != nil {
		return nil, Usagef("--http-cert, --http-key: %w", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if c.flags.ClientCA == "" {
		return config, nil
	}
	text, err := os.ReadFile(c.flags.ClientCA)
	if err != nil {
		return nil, Usagef("--http-client-ca: %w", err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(text) {
		return nil, Usagef("--http-client-ca: %s holds no certificate in PEM", c.flags.ClientCA)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.SessionTicketsDisabled = true // sessions would outlive client authorities
	return config, nil
}

// server returns the configuration of a server.
func (c *certificate) server() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil }}
}

// current reads the files again if they have changed. If they can't be used, it tries again at
// their next change, and serves the earlier ones until then.
func (c *certificate) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.stamps()
	if now == c.read {
		return c.config
	}
	c.read = now
	config, err := c.load()
	if err != nil {
		c.log.Error("the new certificate can't be used, the one before is served on", "error", err)
		return c.config
	}
	c.config = config
	c.log.Info("the certificate was read again", "file", c.flags.Cert)
	return c.config
}
