package client_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// TestRFC9421 is the test of RFC 9421, B.2.6: the signature base, and with it the signature, to the byte.
func TestRFC9421(t *testing.T) {
	t.Parallel()
	const (
		private = "n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU"
		input   = `sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"`
		base    = `"date": Tue, 20 Apr 2021 02:07:55 GMT
"@method": POST
"@path": /foo
"@authority": example.com
"content-type": application/json
"content-length": 18
"@signature-params": ("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"`
		signature = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
	)
	r := sigMust(http.NewRequestWithContext(t.Context(), http.MethodPost, "http://example.com/foo?param=Value&Pet=dog", http.NoBody))
	r.Header = http.Header{
		"Date": {"Tue, 20 Apr 2021 02:07:55 GMT"}, "Content-Type": {"application/json"}, "Content-Length": {"18"},
	}
	got, err := client.SignatureBase(r, input)
	if err != nil || got != base {
		t.Errorf("the base is\n%s\n%v, want\n%s", got, err, base)
	}
	key := ed25519.NewKeyFromSeed(sigMust(base64.RawURLEncoding.DecodeString(private)))
	if got := base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte(got))); got != signature {
		t.Errorf("the signature is %s, want %s", got, signature)
	}
}

// FuzzGuard sends headers of a stranger's making to a Guard that believes every signature. Nothing makes it panic, and what
// passes is covered as it must be, by a base of which nobody but the message has written a line.
func FuzzGuard(f *testing.F) {
	w := newSigWorld(f)
	m := w.byHand(unsignedPost(), sigComponents, sigParams)
	f.Add(m.uri, m.header.Get("Signature-Input"), "", m.header.Get("Signature"), m.header.Get("Content-Digest"),
		"application/json", []byte(m.body))
	f.Add("/", `a=("@method" "@path");created=1705412600;tag="omi"`, `b=();tag="omi", c="x"`, "a=:AA==:, b=?1",
		"sha-256=1.5, md5=?0", "", []byte(nil))
	f.Add("/?%", `a=("@method";req "x"), *b;c=@1;d=%"e";tag="omi"`, "", `a="\\"`, "", "\xff", []byte("x"))
	f.Fuzz(func(t *testing.T, uri, input, second, signature, digest, mediaType string, body []byte) {
		if !strings.HasPrefix(uri, "/") || strings.ContainsAny(uri, " \r\n\x00") {
			return
		}
		believer := new(believer)
		guard := client.NewGuard(client.GuardConfig{Checker: believer, Now: w.now})
		guarded := guard.RequireSignature(sigHost)(http.HandlerFunc(echo))
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+sigHost+uri, bytes.NewReader(body))
		if err != nil {
			return
		}
		r.RequestURI = uri
		r.Header = http.Header{"Signature-Input": {input, second}, "Signature": {signature}, "Content-Digest": {digest}}
		if mediaType != "" {
			r.Header.Set("Content-Type", mediaType)
		}
		answer := &recorder{header: make(http.Header)}
		guarded.ServeHTTP(answer, r)
		if answer.status != http.StatusOK {
			return
		}
		base := string(believer.asked.Message)
		if len(base) > 32<<10 {
			t.Errorf("a base of %d bytes", len(base))
		}
		lines := strings.Split(base, "\n")
		last := len(lines) - 1
		list, _, ok := strings.Cut(lines[last], ")")
		if components := strings.Count(list, `"`)/2 - 1; !ok || components != last || !strings.HasPrefix(list, `"@signature-params": (`) {
			t.Errorf("%d lines before the last, which is %s", last, lines[last])
		}
		for _, want := range []string{`"@method": POST`, `"@authority": ` + sigHost} {
			if n := strings.Count("\n"+base, "\n"+want+"\n"); n != 1 {
				t.Errorf("%d times %s in\n%s", n, want, base)
			}
		}
		for _, name := range []string{"@path", "@query", "content-digest"} {
			if n := strings.Count("\n"+base, "\n\""+name+"\": "); n != 1 {
				t.Errorf("%d times %s in\n%s", n, name, base)
			}
		}
	})
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(s int)   { r.status = s }
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return len(b), nil
}

// believer accepts every signature.
type believer struct{ asked events.VerifyQuery }

func (b *believer) Verify(_ context.Context, q events.VerifyQuery) (events.VerifyAnswer, error) {
	b.asked = q
	return events.VerifyAnswer{Result: events.Accepted, Key: events.KeyCurrent}, nil
}
