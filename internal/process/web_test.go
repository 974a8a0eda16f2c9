package process_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/testenv"
)

// authority is a certificate of the loopback address, its key, and the authority that signed it.
type authority struct{ ca, cert, key string }

func newAuthority(t *testing.T) authority {
	t.Helper()
	folder := t.TempDir()
	a := authority{filepath.Join(folder, "ca.pem"), filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")}
	testenv.Certify(t, a.ca, a.cert, a.key)
	return a
}

// client trusts the authority, and shows a certificate if it is given one. Each of its requests is
// a new handshake.
func (a authority) client(t *testing.T, most uint16, show ...authority) *http.Client {
	t.Helper()
	text, err := os.ReadFile(a.ca)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MaxVersion: most, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	config.RootCAs.AppendCertsFromPEM(text)
	for _, own := range show {
		pair, err := tls.LoadX509KeyPair(own.cert, own.key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = append(config.Certificates, pair)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
}

func serving(t *testing.T, web process.Web, log *slog.Logger) *process.HTTP {
	t.Helper()
	h, err := web.Listen(log)
	if err != nil {
		t.Fatal(err)
	}
	h.Ready(nil, api.Routes(log, api.Endpoint{
		Name: "thing", Pattern: "GET /thing", Handle: func(context.Context, api.Call) (api.Answer, error) { return api.JSON("yes") },
	}))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return h
}

// status returns an answer's status, or 0 if there is none.
func status(t *testing.T, c *http.Client, url string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(request)
	if err != nil {
		return 0
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// TestAdminAddr: metrics and health with an address of their own are served only there, and nothing
// more is.
func TestAdminAddr(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	one := serving(t, process.Web{Addr: "127.0.0.1:0"}, log)
	two := serving(t, process.Web{Addr: "127.0.0.1:0", Admin: "127.0.0.1:0"}, log)
	for url, want := range map[string]int{
		one.Addr() + "/thing": 200, one.AdminAddr() + "/healthz": 200, one.Addr() + "/metrics": 200,
		two.Addr() + "/thing": 200, two.Addr() + "/healthz": 404, two.Addr() + "/metrics": 404,
		two.AdminAddr() + "/thing": 404, two.AdminAddr() + "/healthz": 200, two.AdminAddr() + "/metrics": 200,
	} {
		if got := status(t, http.DefaultClient, "http://"+url); got != want {
			t.Errorf("%s: %d, want %d", url, got, want)
		}
	}
}

// TestHTTPS: the public address speaks only TLS 1.2 or newer, metrics and health need none. A
// certificate that is replaced is used from the next handshake on, unless it can't be used.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	a, b := newAuthority(t), newAuthority(t)
	said := &testenv.Log{}
	h := serving(t, process.Web{Addr: "127.0.0.1:0", Admin: "127.0.0.1:0", Cert: a.cert, Key: a.key}, slog.New(slog.NewTextHandler(said, nil)))
	url := "https://" + h.Addr() + "/thing"
	ofA, ofB := a.client(t, 0), b.client(t, 0)
	for what, got := range map[string]struct{ got, want int }{
		"TLS":             {status(t, ofA, url), 200},
		"TLS 1.2":         {status(t, a.client(t, tls.VersionTLS12), url), 200},
		"TLS 1.1":         {status(t, a.client(t, tls.VersionTLS11), url), 0},
		"no TLS":          {status(t, http.DefaultClient, "http://"+h.Addr()+"/thing"), 400},
		"not trusted":     {status(t, ofB, url), 0},
		"health, no TLS":  {status(t, http.DefaultClient, "http://"+h.AdminAddr()+"/healthz"), 200},
		"metrics, by TLS": {status(t, ofA, "https://"+h.AdminAddr()+"/metrics"), 0},
	} {
		if got.got != got.want {
			t.Errorf("%s: %d, want %d", what, got.got, got.want)
		}
	}
	if n := said.Count("handshake"); n > 0 {
		t.Errorf("strangers have filled the log with %d lines", n)
	}

	replace(t, b.cert, a.cert) // halfway: the key is another's
	for range 2 {
		if got := status(t, ofA, url); got != 200 {
			t.Errorf("while one of two files is replaced: %d", got)
		}
	}
	if n := said.Count("can't be used"); n != 1 {
		t.Errorf("that the certificate can't be used is said %d times", n)
	}
	replace(t, b.key, a.key)
	if before, now := status(t, a.client(t, 0), url), status(t, ofB, url); before != 0 || now != 200 {
		t.Errorf("after the certificate was replaced: %d by the one before, %d by the new one", before, now)
	}
}

// TestMutualTLS: with a client authority, only its clients are answered. When it is replaced,
// clients of the earlier one are not, whatever session they have.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	server, a, b := newAuthority(t), newAuthority(t), newAuthority(t)
	h := serving(t, process.Web{Addr: "127.0.0.1:0", Cert: server.cert, Key: server.key, ClientCA: a.ca}, slog.New(slog.DiscardHandler))
	url := "https://" + h.Addr() + "/healthz"
	ofA, ofB := server.client(t, 0, a), server.client(t, 0, b)
	if none, got, other := status(t, server.client(t, 0), url), status(t, ofA, url), status(t, ofB, url); none != 0 || got != 200 || other != 0 {
		t.Errorf("without a certificate %d, with one %d, with a stranger's %d", none, got, other)
	}
	replace(t, b.ca, a.ca)
	if got, other := status(t, ofA, url), status(t, ofB, url); got != 0 || other != 200 {
		t.Errorf("after the authority was replaced: %d by the one before, %d by the new one", got, other)
	}
}

// TestCertificateFlags: certificates that can't be used are refused before anything listens, in
// words that name the flag.
func TestCertificateFlags(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	open, text := filepath.Join(t.TempDir(), "open.pem"), filepath.Join(t.TempDir(), "text.pem")
	key, err := os.ReadFile(a.key)
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{open: key, text: []byte("no certificate")} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for want, web := range map[string]process.Web{
		"belong together":        {Cert: a.cert},
		"needs both":             {ClientCA: a.ca},
		"no such file":           {Cert: a.cert, Key: a.key + "x"},
		"chmod 600":              {Cert: a.cert, Key: open},
		"--http-cert, ":          {Cert: text, Key: a.key},
		"holds no certificate":   {Cert: a.cert, Key: a.key, ClientCA: text},
		"another with --admin-a": {Cert: a.cert, Key: a.key, Admin: "nonsense"},
	} {
		web.Addr = "127.0.0.1:0"
		if _, err := web.Listen(slog.New(slog.DiscardHandler)); process.ExitCode(err) != process.ExitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want a usage error with %q", web, err, want)
		}
	}
}

// replace replaces a file by a copy of another, as a renewal of certificates does.
func replace(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to+".new", bytes.TrimRight(content, "\n"), 0o600)
	}
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		t.Fatal(err)
	}
}
