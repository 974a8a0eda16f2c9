package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/internal/api"
)

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
