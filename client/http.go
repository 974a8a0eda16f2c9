package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/internal/api"
)

// ErrBodySize means that a request has a body that can be read only once, and is larger than
// [Transport.MaxBody].
var ErrBodySize = errors.New(
	"the body is too large to be held in memory until it is signed: raise MaxBody, or give the request a GetBody")

// Transport is an [http.RoundTripper] that signs every request as a service (docs/signing.md), each
// time with the key to use at that time. Signer is required.
//
// A redirect is a new request, with a signature of its own, but only within the authority that was
// first asked: no other can make a service sign a request to a third party. As net/http does with
// Authorization, Transport sends such a request without a signature.
//
// The body's digest comes before the body. A body with a GetBody (http.NewRequest sets it for
// strings, bytes and buffers) is read twice, any other is held in memory.
//
// Put it around [http.Transport] itself, inside any other RoundTripper. Only there it sees when
// net/http sends a request again by itself, and signs it again. Elsewhere the request goes out with
// its first nonce, and may be refused.
type Transport struct {
	Signer Identity
	Base   http.RoundTripper // nil: http.DefaultTransport
	// Fields are the names of header fields to cover if a request has them, in addition to
	// Content-Type and Content-Digest.
	Fields []string
	// MaxBody is the limit for a body that has no GetBody, in bytes. Default 16 MiB, as in a
	// [Guard].
	MaxBody int64
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// RoundTrip implements [http.RoundTripper]. It fails if the request can't be signed: [ErrBodySize],
// a URL or a field that is not ASCII, a key that can't be reached.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	if sentElsewhere(r) {
		return base.RoundTrip(r)
	}
	out, err := t.signed(r, base)
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // in any case, a RoundTripper closes it
		}
		return nil, fmt.Errorf("sign the request: %w", err)
	}
	return base.RoundTrip(out)
}

// sentElsewhere reports whether a redirect leads away from the authority that the caller asked.
func sentElsewhere(r *http.Request) bool {
	first := r
	for first.Response != nil && first.Response.Request != nil {
		first = first.Response.Request
	}
	return authorityOf(first) != authorityOf(r)
}

// signed returns a signed copy of the request: a RoundTripper leaves the original as it is.
func (t *Transport) signed(r *http.Request, base http.RoundTripper) (*http.Request, error) {
	if len(r.Trailer) > 0 {
		return nil, fmt.Errorf("%w: trailers would not be covered", errSigBase)
	}
	derived, err := componentsOf(cmp.Or(r.Method, http.MethodGet), authorityOf(r), r.URL.RequestURI())
	if err != nil {
		return nil, err
	}
	header := r.Header.Clone()
	if header == nil {
		header = make(http.Header)
	}
	c := &covered{tag: requestTag, derived: derived, header: header}
	sign := func() error { return c.sign(t.Signer, t.Fields, t.now()) }

	ctx := r.Context()
	if _, ours := base.(*http.Transport); ours {
		ctx = httptrace.WithClientTrace(ctx, signAgain(sign))
	}
	out := r.WithContext(ctx)
	out.Header = header
	if err := t.digest(out); err != nil {
		return nil, err
	}
	return out, sign()
}

// signAgain signs once more each time that net/http looks for a connection for the same request. It
// does so when a kept-alive connection breaks: the request may have been received, and its nonce
// used. If the request can't be signed, it goes as it was. http.Transport does this in sequence, so
// the header is not read meanwhile.
func signAgain(sign func() error) *httptrace.ClientTrace {
	first := true
	return &httptrace.ClientTrace{GetConn: func(string) {
		if !first {
			_ = sign()
		}
		first = false
	}}
}

func (t *Transport) now() time.Time {
	if t.Now != nil {
		return t.Now()
	}
	return time.Now()
}

// digest reads the body of our copy of the request, and sets Content-Digest and a body that can be
// sent.
func (t *Transport) digest(r *http.Request) error {
	dropField(r.Header, digestField)
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	read := sumOfCopy
	if r.GetBody == nil {
		read = t.hold
	}
	sum, size, err := read(r)
	if err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if size > 0 {
		setField(r.Header, digestField, digestOf(sum))
	}
	return nil
}

func sumOfCopy(r *http.Request) (sum [sha256.Size]byte, size int64, err error) {
	body, err := r.GetBody()
	if err != nil {
		return sum, 0, err
	}
	hash := sha256.New()
	size, err = io.Copy(hash, body)
	return [sha256.Size]byte(hash.Sum(nil)), size, errors.Join(err, body.Close())
}

// hold takes the body into memory.
func (t *Transport) hold(r *http.Request) (sum [sha256.Size]byte, size int64, err error) {
	limit := cmp.Or(t.MaxBody, defaultMaxBody)
	if r.ContentLength > limit {
		return sum, 0, ErrBodySize
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return sum, 0, err
	}
	size = int64(len(body))
	switch {
	case size > limit:
		return sum, 0, ErrBodySize
	case r.ContentLength > 0 && r.ContentLength != size:
		return sum, 0, fmt.Errorf("it has %d bytes, and ContentLength says %d", size, r.ContentLength)
	}
	if err := r.Body.Close(); err != nil {
		return sum, 0, err
	}
	r.ContentLength = size
	r.GetBody = func() (io.ReadCloser, error) {
		if size == 0 {
			return http.NoBody, nil
		}
		return io.NopCloser(bytes.NewReader(body)), nil
	}
	r.Body, err = r.GetBody()
	return sha256.Sum256(body), size, err
}

// componentsOf returns what every signature of a request covers (RFC 9421 §2.2): its destination
// and its purpose. The scheme is not covered, because it is unknown behind a proxy. requestURI is
// the path and query as they are sent, byte for byte.
func componentsOf(method, authority, requestURI string) ([]component, error) {
	if !strings.HasPrefix(requestURI, "/") {
		return nil, fmt.Errorf("%w: its target is not a path", errSigBase)
	}
	path, query, _ := strings.Cut(requestURI, "?")
	return []component{{"@method", method}, {"@authority", authority}, {"@path", path}, {"@query", "?" + query}}, nil
}

// authorityOf returns the host that an outgoing request is for, in the form of RFC 9421 §2.2.3: in
// lower case, without the scheme's own port.
func authorityOf(r *http.Request) string {
	port := ":80"
	if strings.EqualFold(r.URL.Scheme, "https") {
		port = ":443"
	}
	return strings.TrimSuffix(strings.ToLower(cmp.Or(r.Host, r.URL.Host)), port)
}

// RequireSignature lets pass the HTTP requests that a service has signed for one of these
// authorities: the host by which callers know this server, with its port unless that is 80 or 443.
// [CallerFrom] returns the signer.
//
// Without the name, the receiver of a request that was signed for another server could send it on
// to this one. So a proxy in front must pass on the Host, the path and the query as they came. The
// signature is checked before the body is read, and the body before the handler sees it.
//
// Other requests get a problem document (RFC 9457): 401 with the reason, 413 for a body over
// MaxBody, 421 for another authority, 503 if the signature can't be checked.
func (g *Guard) RequireSignature(authority string, others ...string) func(http.Handler) http.Handler {
	authorities := []string{bareAuthority(authority)}
	for _, other := range others {
		authorities = append(authorities, bareAuthority(other))
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			caller, body, err := g.checkRequest(w, r, authorities)
			if err != nil {
				g.writeProblem(w, r, err)
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			next.ServeHTTP(w, r)
		})
	}
}

// bareAuthority is [authorityOf] for an unknown scheme: the port of either scheme is left out.
func bareAuthority(host string) string {
	host = strings.ToLower(host)
	return strings.TrimSuffix(strings.TrimSuffix(host, ":443"), ":80")
}

func (g *Guard) checkRequest(w http.ResponseWriter, r *http.Request, authorities []string) (Caller, []byte, error) {
	authority := bareAuthority(r.Host)
	if !slices.Contains(authorities, authority) {
		return Caller{}, nil, refusal(Misdirected, "Requests to this server are signed for %s.", strings.Join(authorities, " or "))
	}
	derived, err := componentsOf(r.Method, authority, originalURI(r))
	if err != nil {
		return Caller{}, nil, refusal(MalformedSignature, "There is no signature base: %s.", err)
	}
	m := &covered{tag: requestTag, derived: derived, header: r.Header}
	return g.check(r.Context(), m, func() ([]byte, error) { return g.readBody(w, r) })
}

// originalURI returns the path and query as they came: an outer handler may have taken a prefix off
// r.URL.
func originalURI(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI() // of a request to a proxy, whose target is a whole URL
}

func (g *Guard) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, g.cfg.MaxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		status := http.StatusRequestEntityTooLarge
		detail := fmt.Sprintf("The body is larger than %d bytes.", g.cfg.MaxBody)
		return nil, &api.Problem{Title: http.StatusText(status), Status: status, Detail: detail}
	}
	if err != nil {
		status := http.StatusBadRequest
		return nil, &api.Problem{Title: http.StatusText(status), Status: status, Detail: "The body can't be read."}
	}
	return body, nil
}

// acceptSignature asks for a signature in the words of RFC 9421 §5.1.
const acceptSignature = sigLabel + `=("@method" "@authority" "@path" "@query" "content-digest" "content-type")` +
	`;created;alg="ed25519";tag="` + requestTag + `"`

func (g *Guard) writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	p := g.problem(r.Context(), err)
	switch p.Status {
	case http.StatusUnauthorized:
		// RFC 9110 wants a challenge; the next field says what is wanted.
		w.Header().Set("WWW-Authenticate", "Signature")
		w.Header().Set("Accept-Signature", acceptSignature)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	api.WriteProblem(w, p)
}
