package client

import (
	"net/http"

	"github.com/dunglas/httpsfv"
)

// SignatureBase returns the signature base of a request for the one signature that this Signature-Input describes,
// whatever that leaves out.
func SignatureBase(r *http.Request, input string) (string, error) {
	derived, err := componentsOf(r.Method, authorityOf(r), r.URL.RequestURI())
	if err != nil {
		return "", err
	}
	d, err := httpsfv.UnmarshalDictionary([]string{input})
	if err != nil {
		return "", err
	}
	member, _ := d.Get(d.Names()[0])
	base, _, err := (&covered{derived: derived, header: r.Header}).base(member.(httpsfv.InnerList))
	return string(base), err
}

// Remembered returns of how many callers a Guard remembers how many nonces.
func (g *Guard) Remembered() (callers, nonces int) {
	g.nonces.mu.Lock()
	defer g.nonces.mu.Unlock()
	for _, u := range g.nonces.callers {
		for _, used := range u.seconds {
			nonces += len(used)
		}
	}
	return len(g.nonces.callers), nonces
}
