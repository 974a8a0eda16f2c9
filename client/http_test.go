package client_test

import (
	"crypto"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// serve starts a server that hands what is signed to handle, and returns a client that signs.
func (w *sigWorld) serve(t testing.TB, handle http.Handler, start func(*httptest.Server)) (*httptest.Server, *http.Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.Config.Handler = client.NewGuard(w.cfg).RequireSignature(server.Listener.Addr().String())(handle)
	start(server)
	t.Cleanup(server.Close)
	signing := server.Client()
	signing.Transport = &client.Transport{Signer: w.id, Base: signing.Transport, Now: w.now}
	return server, signing
}

// do returns the status and the body of the answer.
func do(t testing.TB, c *http.Client, r *http.Request) (status int, body string) {
	t.Helper()
	response, err := c.Do(r)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(content)
}

// onlyOnce hides what http.NewRequest knows of the readers of the standard library.
type onlyOnce struct{ io.Reader }

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for version, start := range map[string]func(*httptest.Server){
		"HTTP/1.1": (*httptest.Server).Start,
		"HTTP/2":   func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() },
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			w := newSigWorld(t)
			server, c := w.serve(t, http.HandlerFunc(echo), start)
			next := events.GenerateSigningKey()
			w.keys.good[w.id.target] = append(w.keys.good[w.id.target], next.Public())
			for _, key := range []events.SigningKey{w.key, next} { // a rotation changes nothing
				w.id.key.Store(&key)
				for _, r := range []struct {
					method, uri, body string
					once              bool
				}{
					{http.MethodGet, "", "", false},
					{http.MethodGet, "?", "", false},
					{http.MethodDelete, "/a%2Fb//c%20d/ä?q=a+b&%C3%BC", "", false},
					{http.MethodPost, "/p", "body", false},
					{http.MethodPut, "/p", "stream", true},
					{http.MethodPut, "/p", "", true},
					{http.MethodPatch, "/p", strings.Repeat("x", 1<<20), false},
				} {
					var body io.Reader = strings.NewReader(r.body)
					if r.once {
						body = onlyOnce{body}
					}
					status, answer := do(t, c, sigMust(http.NewRequestWithContext(t.Context(), r.method, server.URL+r.uri, body)))
					if status != http.StatusOK || answer != sigTarget+" current "+r.body {
						t.Errorf("%s %s: %d %.200s", r.method, r.uri, status, answer)
					}
				}
			}
		})
	}
}

// TestRequestIsLeft looks whether RoundTrip keeps to the contract: the request stays as it was, its body is closed.
func TestRequestIsLeft(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	for name, c := range map[string]struct {
		transport client.Transport
		change    func(*http.Request)
		want      error
		unread    bool
	}{
		"signed": {},
		"with other signatures": {change: func(r *http.Request) {
			r.Header["signature"], r.Header["Content-Digest"] = []string{"x"}, []string{"y"}
		}},
		"no header": {change: func(r *http.Request) { r.Header = nil }},
		"read once": {change: func(r *http.Request) { r.GetBody, r.ContentLength = nil, 0 }},
		"too large": {
			transport: client.Transport{MaxBody: int64(len(sigBody) - 1)},
			change:    func(r *http.Request) { r.GetBody, r.ContentLength = nil, 0 }, want: client.ErrBodySize,
		},
		"too large, as it says": {
			transport: client.Transport{MaxBody: 1},
			change:    func(r *http.Request) { r.GetBody = nil }, want: client.ErrBodySize, unread: true,
		},
		"shorter than it says": {change: func(r *http.Request) { r.GetBody, r.ContentLength = nil, 100 }, want: errSigAny},
		"no second body": {
			change: func(r *http.Request) { r.GetBody = func() (io.ReadCloser, error) { return nil, errSigAny } }, want: errSigAny,
		},
		"no key": {transport: client.Transport{Signer: brokenSigner{w.id, nil, errSigAny}}, want: errSigAny},
		"a key of another kind": {
			transport: client.Transport{Signer: brokenSigner{w.id, make([]byte, 71), nil}}, want: errSigAny,
		},
		"a URL that is not ASCII": {change: func(r *http.Request) { r.URL.RawQuery = "ä" }, want: errSigAny},
		"a URL with a line end":   {change: func(r *http.Request) { r.URL.RawQuery = "a\nb" }, want: errSigAny},
		"an opaque URL":           {change: func(r *http.Request) { r.URL.Opaque = "//other/x" }, want: errSigAny},
		"a long URL":              {change: func(r *http.Request) { r.URL.RawQuery = strings.Repeat("x", 33<<10) }, want: errSigAny},
		"trailers":                {change: func(r *http.Request) { r.Trailer = http.Header{"X": nil} }, want: errSigAny},
		"a field in two spellings": {
			change: func(r *http.Request) { r.Header["content-type"] = []string{"text/plain"} }, want: errSigAny,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sent := new(capture)
			c.transport.Base, c.transport.Now = sent, w.now
			if c.transport.Signer == nil {
				c.transport.Signer = w.id
			}
			body := &closing{Reader: strings.NewReader(sigBody)}
			r := newPost(t)
			r.Body = body
			if c.change != nil {
				c.change(r)
			}
			before := r.Header.Clone()
			err := roundTrip(&c.transport, r)
			if (err == nil) != (c.want == nil) || (c.want != nil && !errors.Is(c.want, errSigAny) && !errors.Is(err, c.want)) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if diff := cmp.Diff(before, r.Header); diff != "" {
				t.Errorf("the request's header changed:\n%s", diff)
			}
			if !body.closed {
				t.Error("the body was not closed")
			}
			if c.unread && body.read {
				t.Error("the body was read")
			}
			if err == nil && (len(sent.sent) != 1 || sent.sent[0].body != sigBody) {
				t.Errorf("sent: %+v", sent.sent)
			}
			if err == nil && name != "no header" {
				if status, reason := sent.sent[0].to(t, w.guarded()); status != http.StatusOK {
					t.Errorf("%d %s", status, reason)
				}
			}
		})
	}
}

var errSigAny = errors.New("any error")

type closing struct {
	io.Reader
	closed, read bool
}

func (c *closing) Read(p []byte) (int, error) { c.read = true; return c.Reader.Read(p) }

func (c *closing) Close() error { c.closed = true; return nil }

type brokenSigner struct {
	*sigIdentity
	signature []byte
	err       error
}

func (b brokenSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return b.signature, b.err
}

// TestBodyInMemory sends a body larger than MaxBody, which need not be held.
func TestBodyInMemory(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	sent := new(capture)
	if err := roundTrip(&client.Transport{Signer: w.id, Base: sent, MaxBody: 1}, newPost(t)); err != nil {
		t.Error(err)
	}
}

// TestStaleDigest has no body, but the digest of another one.
func TestStaleDigest(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	r := sigMust(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+sigHost, http.NoBody))
	r.Header["content-digest"] = unsignedPost().header["Content-Digest"]
	if status, reason := w.send(t, r).to(t, w.guarded()); status != http.StatusOK {
		t.Errorf("%d %s", status, reason)
	}
}

// TestAuthority signs for the host that the server sees.
func TestAuthority(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	for target, host := range map[string]string{
		"http://Billing.Example.com:80/":   sigHost,
		"https://billing.example.com:443/": sigHost,
		"https://10.0.0.1/":                "BILLING.example.com",
	} {
		r := sigMust(http.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody))
		if r.URL.Host == "10.0.0.1" {
			r.Host = host
		}
		m := w.send(t, r)
		if status, reason := m.to(t, w.guarded()); status != http.StatusOK {
			t.Errorf("%s: %d %s", target, status, reason)
		}
	}
	for _, target := range []string{"http://billing.example.com:443/", "https://billing.example.com:8443/"} {
		m := w.send(t, sigMust(http.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody)))
		m.host = sigHost
		if _, reason := m.to(t, w.guarded()); reason != events.InvalidSignature {
			t.Errorf("%s: %q", target, reason)
		}
	}
}

// TestRedirect follows redirects: within the authority each is signed anew, and nobody else can have a request signed.
func TestRedirect(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	var asked atomic.Pointer[http.Request]
	elsewhere := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked.Store(r)
		if r.URL.Path == "/again" {
			http.Redirect(rw, r, "/end", http.StatusTemporaryRedirect)
		}
	}))
	t.Cleanup(elsewhere.Close)
	server, c := w.serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(rw, r, "/end?x=1", http.StatusPermanentRedirect)
		case "/away":
			http.Redirect(rw, r, elsewhere.URL+"/again", http.StatusPermanentRedirect)
		default:
			echo(rw, r)
		}
	}), (*httptest.Server).Start)
	r := sigMust(http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/moved", strings.NewReader(sigBody)))
	if status, body := do(t, c, r); status != http.StatusOK || !strings.HasSuffix(body, sigBody) {
		t.Errorf("within the authority: %d %s", status, body)
	}
	r = sigMust(http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/away", strings.NewReader(sigBody)))
	if status, _ := do(t, c, r); status != http.StatusOK {
		t.Errorf("to another: %d", status)
	}
	last := asked.Load()
	if last == nil || last.URL.Path != "/end" || last.Header.Get("Signature")+last.Header.Get("Signature-Input") != "" {
		t.Errorf("a request to another authority, to which nobody sent it but a redirect: %+v", last)
	}
}

// TestSentAgain breaks a connection that was kept alive, after the server has taken the request. net/http sends it again
// by itself; with the first nonce it would be refused.
func TestSentAgain(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	var mu sync.Mutex
	var inputs []string
	server, c := w.serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		inputs = append(inputs, r.Header.Get("Signature-Input"))
		n := len(inputs)
		mu.Unlock()
		if n%3 == 2 {
			panic(http.ErrAbortHandler) // ends the connection
		}
		echo(rw, r)
	}), (*httptest.Server).Start)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for range 2 { // the first one leaves a connection
			r := sigMust(http.NewRequestWithContext(t.Context(), method, server.URL, http.NoBody))
			if method == http.MethodPost {
				r = sigMust(http.NewRequestWithContext(t.Context(), method, server.URL, strings.NewReader(sigBody)))
				r.Header.Set("Idempotency-Key", "17") // net/http's word for a POST that it may send again
			}
			if status, body := do(t, c, r); status != http.StatusOK {
				t.Errorf("%s: %d %s", method, status, body)
			}
		}
	}
	slices.Sort(inputs)
	if len(slices.Compact(inputs)) != 6 {
		t.Errorf("%d signatures were seen, want 6 that differ:\n%s", len(inputs), strings.Join(inputs, "\n"))
	}
}

// TestConcurrent signs and verifies side by side while the key changes.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	next := events.GenerateSigningKey()
	w.keys.good[w.id.target] = append(w.keys.good[w.id.target], next.Public())
	server, c := w.serve(t, http.HandlerFunc(echo), (*httptest.Server).Start)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 25 {
				if n == 0 && i == 10 {
					w.id.key.Store(&next)
				}
				r := sigMust(http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, strings.NewReader(sigBody)))
				if status, body := do(t, c, r); status != http.StatusOK {
					t.Errorf("%d %s", status, body)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkSignRequest(b *testing.B) {
	w := newSigWorld(b)
	transport := &client.Transport{Signer: w.id, Base: nowhere{}}
	r := newPost(b)
	b.ReportAllocs()
	for b.Loop() {
		r.Body = sigMust(r.GetBody())
		if err := roundTrip(transport, r); err != nil {
			b.Fatal(err)
		}
	}
}

type nowhere struct{}

func (nowhere) RoundTrip(r *http.Request) (*http.Response, error) {
	_ = r.Body.Close()
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

// BenchmarkVerifyRequest checks requests that differ, since none may come twice. Signing them is not counted.
func BenchmarkVerifyRequest(b *testing.B) {
	w := newSigWorld(b)
	guarded := client.NewGuard(w.cfg).RequireSignature(sigHost)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	m := w.post(b)
	r := httptest.NewRequestWithContext(b.Context(), m.method, m.uri, strings.NewReader(""))
	r.Host = m.host
	answer := httptest.NewRecorder()
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		w.clock.Add(1)
		r.Header = w.post(b).header
		r.Body = io.NopCloser(strings.NewReader(m.body))
		b.StartTimer()
		guarded.ServeHTTP(answer, r)
		if answer.Code != http.StatusOK {
			b.Fatal(answer.Body)
		}
	}
}
