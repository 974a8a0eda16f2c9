package client_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

const (
	sigTarget = "org.omiappreg.alice.business_app.7f8a9d.cms-article-77"
	sigHost   = "billing.example.com"
	sigTime   = int64(1_705_412_600)
	sigNonce  = "hTqx4sRKUuRySwyl3WIjXQ"
	sigBody   = `{"article":77,"lines":3}`
)

// sigIdentity signs as a service, and may switch its key at any time.
type sigIdentity struct {
	target events.Target
	key    atomic.Pointer[events.SigningKey]
}

func newSigIdentity(t testing.TB, target string, key events.SigningKey) *sigIdentity {
	t.Helper()
	i := &sigIdentity{target: sigMust(events.ParseTarget(target))}
	i.key.Store(&key)
	return i
}

func (i *sigIdentity) Target() events.Target    { return i.target }
func (i *sigIdentity) Public() crypto.PublicKey { return i.key.Load().Private().Public() }
func (i *sigIdentity) Sign(r io.Reader, message []byte, o crypto.SignerOpts) ([]byte, error) {
	return i.key.Load().Private().Sign(r, message, o)
}

// sigKeys is an Auth Provider that knows which keys are good, and may be away.
type sigKeys struct {
	good map[events.Target][]events.PublicKey
	away error
}

func (k *sigKeys) Verify(_ context.Context, q events.VerifyQuery) (events.VerifyAnswer, error) {
	if k.away != nil {
		return events.VerifyAnswer{}, k.away
	}
	keys, known := k.good[q.Target]
	if !known {
		return events.VerifyAnswer{Result: events.Refused, Reason: string(events.UnknownService)}, nil
	}
	for _, key := range keys {
		if key.Verify(q.Message, q.Signature) {
			return events.VerifyAnswer{Result: events.Accepted, Key: events.KeyCurrent, PublicKey: key}, nil
		}
	}
	return events.VerifyAnswer{Result: events.Refused, Reason: string(events.InvalidSignature)}, nil
}

func sigMust[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// sigKey is the key svc-2 of the vectors, which the worked example signs with.
func sigKey(t testing.TB) events.SigningKey {
	t.Helper()
	for _, f := range vectors.Load(t).Keys {
		if key, ok := f.Keys["svc-2"]; ok {
			return events.NewSigningKey(key.Private())
		}
	}
	t.Fatal("the vectors have no key svc-2")
	return events.SigningKey{}
}

// sigWorld is a service, and the Guard of another that knows it, at sigTime.
type sigWorld struct {
	key   events.SigningKey
	id    *sigIdentity
	keys  *sigKeys
	clock atomic.Int64
	cfg   client.GuardConfig
}

func newSigWorld(t testing.TB) *sigWorld {
	t.Helper()
	w := &sigWorld{key: sigKey(t)}
	w.id = newSigIdentity(t, sigTarget, w.key)
	w.keys = &sigKeys{good: map[events.Target][]events.PublicKey{w.id.target: {w.key.Public()}}}
	w.clock.Store(sigTime)
	w.cfg = client.GuardConfig{Checker: w.keys, Now: w.now}
	return w
}

func (w *sigWorld) now() time.Time { return time.Unix(w.clock.Load(), 0) }

// echo answers with who called, and with the body.
func echo(w http.ResponseWriter, r *http.Request) {
	caller, ok := client.CallerFrom(r.Context())
	if !ok {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	_, _ = w.Write([]byte(caller.Target.String() + " " + caller.Answer.Key + " " + string(body)))
}

// wire is a request as it is on its way, for somebody to change.
type wire struct {
	method, host, uri string
	header            http.Header
	body              string
}

func (m wire) clone() wire {
	m.header = m.header.Clone()
	return m
}

// to hands the request to a handler, and returns the status and the reason of the problem document.
func (m wire) to(t testing.TB, h http.Handler) (status int, reason events.Reason) {
	t.Helper()
	w := m.answer(t, h)
	if w.Code == http.StatusOK {
		return w.Code, ""
	}
	var problem struct {
		Status int           `json:"status"`
		Title  string        `json:"title"`
		Detail string        `json:"detail"`
		Reason events.Reason `json:"reason"`
	}
	err := json.Unmarshal(w.Body.Bytes(), &problem)
	if err != nil || problem.Status != w.Code || problem.Title == "" || problem.Detail == "" {
		t.Errorf("%d with no such problem document: %s (%v)", w.Code, w.Body, err)
	}
	return w.Code, problem.Reason
}

func (m wire) answer(t testing.TB, h http.Handler) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), m.method, m.uri, strings.NewReader(m.body))
	r.Host, r.Header = m.host, m.header.Clone()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// capture is a RoundTripper that keeps what it should send.
type capture struct{ sent []wire }

func (c *capture) RoundTrip(r *http.Request) (*http.Response, error) {
	m := wire{method: r.Method, host: r.URL.Host, uri: r.URL.RequestURI(), header: r.Header.Clone()}
	if r.Host != "" {
		m.host = r.Host
	}
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		m.body = string(body)
		_ = r.Body.Close()
	}
	c.sent = append(c.sent, m)
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
}

// send signs a request as the service, and returns it.
func (w *sigWorld) send(t testing.TB, r *http.Request) wire {
	t.Helper()
	c := new(capture)
	if err := roundTrip(&client.Transport{Signer: w.id, Base: c, Now: w.now}, r); err != nil {
		t.Fatal(err)
	}
	return c.sent[0]
}

func roundTrip(t *client.Transport, r *http.Request) error {
	response, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func (w *sigWorld) post(t testing.TB) wire { return w.send(t, newPost(t)) }

func newPost(t testing.TB) *http.Request {
	t.Helper()
	const target = "https://" + sigHost + "/v1/usage?month=2024-01"
	r := sigMust(http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(sigBody)))
	r.Header.Set("Content-Type", "application/json")
	return r
}

// byHand signs a request of its own making, with nothing of the client: the components as they are named, in that order,
// with these parameters. It is a second reading of RFC 9421, that may do what the client never does.
func (w *sigWorld) byHand(m wire, components []string, params string) wire {
	m = m.clone()
	path, query, _ := strings.Cut(m.uri, "?")
	base, names := new(bytes.Buffer), make([]string, 0, len(components))
	for _, name := range components {
		value, ok := map[string]string{
			"@method": m.method, "@authority": m.host, "@path": path, "@query": "?" + query, "@subject": m.uri,
		}[name]
		if !ok {
			value = strings.Join(m.header.Values(name), ", ")
		}
		names = append(names, `"`+name+`"`)
		base.WriteString(`"` + name + `": ` + value + "\n")
	}
	input := "(" + strings.Join(names, " ") + ")" + params
	base.WriteString(`"@signature-params": ` + input)
	signature := ed25519.Sign(w.key.Private(), base.Bytes())
	m.header.Set("Signature-Input", "omi="+input)
	m.header.Set("Signature", "omi=:"+base64.StdEncoding.EncodeToString(signature)+":")
	return m
}

var (
	sigComponents = []string{"@method", "@authority", "@path", "@query", "content-digest", "content-type"}
	sigParams     = `;created=1705412600;keyid="` + sigTarget + `";nonce="` + sigNonce + `";alg="ed25519";tag="omi"`
)

func unsignedPost() wire {
	sum := sha256.Sum256([]byte(sigBody))
	digest := "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	return wire{
		method: http.MethodPost, host: sigHost, uri: "/v1/usage?month=2024-01", body: sigBody,
		header: http.Header{"Content-Type": {"application/json"}, "Content-Digest": {digest}},
	}
}

func (w *sigWorld) guarded() http.Handler {
	return client.NewGuard(w.cfg).RequireSignature(sigHost)(http.HandlerFunc(echo))
}

var errSigAway = errors.New("the Auth Provider is away: secret of our insides")

// sigReason returns the reason of a refusal, "" for no error, and the text of any other error.
func sigReason(err error) events.Reason {
	if r := (*events.Refusal)(nil); errors.As(err, &r) {
		return r.Reason
	}
	if err != nil {
		return events.Reason(err.Error())
	}
	return ""
}
