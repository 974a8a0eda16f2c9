package client_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// TestTampering changes one thing at a time of a request that would pass.
func TestTampering(t *testing.T) {
	t.Parallel()
	set := func(name string, values ...string) func(*wire) { return func(m *wire) { m.header[name] = values } }
	replace := func(name, old, with string) func(*wire) {
		return func(m *wire) {
			if !strings.Contains(m.header.Get(name), old) {
				t.Errorf("%s has no %q: %s", name, old, m.header.Get(name))
			}
			m.header.Set(name, strings.Replace(m.header.Get(name), old, with, 1))
		}
	}
	const input = "Signature-Input"
	for name, c := range map[string]struct {
		change func(*wire)
		want   events.Reason
	}{
		"nothing":                   {func(*wire) {}, ""},
		"a field that nobody signs": {set("User-Agent", "another"), ""},
		"method":                    {func(m *wire) { m.method = http.MethodPut }, events.InvalidSignature},
		"authority":                 {func(m *wire) { m.host = "auth.example.com" }, client.Misdirected},
		"another authority of ours": {func(m *wire) { m.host = "usage.example.com" }, events.InvalidSignature},
		"path":                      {func(m *wire) { m.uri = "/v1/usages?month=2024-01" }, events.InvalidSignature},
		"the path, encoded":         {func(m *wire) { m.uri = "/v1/%75sage?month=2024-01" }, events.InvalidSignature},
		"query":                     {func(m *wire) { m.uri = "/v1/usage?month=2024-02" }, events.InvalidSignature},
		"no query":                  {func(m *wire) { m.uri = "/v1/usage" }, events.InvalidSignature},
		"body":                      {func(m *wire) { m.body = `{"article":77,"lines":4}` }, client.DigestMismatch},
		"no body":                   {func(m *wire) { m.body = "" }, client.DigestMismatch},
		"a longer body":             {func(m *wire) { m.body += " " }, client.DigestMismatch},
		"body and digest": {func(m *wire) {
			m.body = "{}"
			m.header.Set("Content-Digest", "sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:")
		}, events.InvalidSignature},
		"no digest":                       {func(m *wire) { m.header.Del("Content-Digest") }, client.MalformedSignature},
		"a second digest":                 {func(m *wire) { m.header.Add("Content-Digest", "sha-512=:AA==:") }, events.InvalidSignature},
		"content type":                    {set("Content-Type", "text/plain"), events.InvalidSignature},
		"no content type":                 {func(m *wire) { m.header.Del("Content-Type") }, client.MalformedSignature},
		"a second content type":           {set("Content-Type", "application/json", "text/plain"), events.InvalidSignature},
		"created":                         {replace(input, "created=1705412600", "created=1705412601"), events.InvalidSignature},
		"keyid of another service":        {replace(input, "cms-article-77", "cms-article-78"), events.UnknownService},
		"keyid that is none":              {replace(input, "cms-article-77", "CMS"), client.MalformedSignature},
		"no keyid":                        {replace(input, "keyid=", "key="), client.MalformedSignature},
		"nonce":                           {replace(input, `nonce="`, `nonce="a`), events.InvalidSignature},
		"no nonce":                        {replace(input, "nonce=", "once="), client.MalformedSignature},
		"a nonce that is none":            {replace(input, `nonce="`, `nonce="!`), client.MalformedSignature},
		"another alg":                     {replace(input, "ed25519", "hmac-sha256"), client.MalformedSignature},
		"no alg":                          {replace(input, `;alg="ed25519"`, ""), events.InvalidSignature},
		"alg as a token":                  {replace(input, `"ed25519"`, "ed25519"), client.MalformedSignature},
		"another tag":                     {replace(input, `"omi"`, `"omo"`), client.Unsigned},
		"tag as a token":                  {replace(input, `"omi"`, "omi"), client.Unsigned},
		"the tag of NATS":                 {replace(input, `"omi"`, `"omi-nats"`), client.Unsigned},
		"a parameter more":                {replace(input, ";tag", ";more=1;tag"), events.InvalidSignature},
		"expires":                         {replace(input, ";tag", ";expires=1705412700;tag"), events.InvalidSignature},
		"expires that is none":            {replace(input, ";tag", `;expires="soon";tag`), client.MalformedSignature},
		"created that is none":            {replace(input, "=1705412600", `="now"`), client.MalformedSignature},
		"created with a fraction":         {replace(input, "=1705412600", "=1705412600.5"), client.MalformedSignature},
		"@method left out":                {replace(input, `"@method" `, ""), client.IncompleteSignature},
		"@authority left out":             {replace(input, `"@authority" `, ""), client.IncompleteSignature},
		"@path left out":                  {replace(input, `"@path" `, ""), client.IncompleteSignature},
		"@query left out":                 {replace(input, `"@query" `, ""), client.IncompleteSignature},
		"content-digest left out":         {replace(input, ` "content-digest"`, ""), client.IncompleteSignature},
		"content-type left out":           {replace(input, ` "content-type"`, ""), client.IncompleteSignature},
		"components in another order":     {replace(input, `"@path" "@query"`, `"@query" "@path"`), events.InvalidSignature},
		"a component twice":               {replace(input, `"@path"`, `"@path" "@path"`), client.MalformedSignature},
		"a component with a parameter":    {replace(input, `"@path"`, `"@path";req`), client.MalformedSignature},
		"a component that is not there":   {replace(input, `"@path"`, `"@path" "date"`), client.MalformedSignature},
		"a component that we don't know":  {replace(input, `"@path"`, `"@path" "@target-uri"`), client.MalformedSignature},
		"a component that is a token":     {replace(input, `"@path"`, `"@path" date`), client.MalformedSignature},
		"a component in upper case":       {replace(input, `"content-type"`, `"Content-Type"`), client.IncompleteSignature},
		"a field with a line end":         {func(m *wire) { m.header.Set("Content-Type", "a\n\"@method\": GET") }, client.MalformedSignature},
		"a field that is not ASCII":       {set("Content-Type", "ä"), client.MalformedSignature},
		"signature of another message":    {set("Signature", "omi=:"+strings.Repeat("A", 86)+"==:"), events.InvalidSignature},
		"signature that is too short":     {set("Signature", "omi=:AAAA:"), client.MalformedSignature},
		"signature that is a string":      {set("Signature", `omi="AAAA"`), client.MalformedSignature},
		"no Signature":                    {func(m *wire) { m.header.Del("Signature") }, client.MalformedSignature},
		"no Signature-Input":              {func(m *wire) { m.header.Del(input) }, client.Unsigned},
		"an empty Signature-Input":        {set(input, ""), client.Unsigned},
		"an item for a Signature-Input":   {set(input, `omi="x"`), client.MalformedSignature},
		"another label in one of the two": {replace("Signature", "omi=", "imo="), client.MalformedSignature},
		"another label in both":           {func(m *wire) { replace("Signature", "omi=", "imo=")(m); replace(input, "omi=", "imo=")(m) }, ""},
		"garbage":                         {set(input, "omi=((("), client.MalformedSignature},
		"a long Signature-Input":          {set(input, "omi=("+strings.Repeat(`"@path" `, 2000)+")"), client.MalformedSignature},
		"a long Signature":                {set("Signature", "omi=:"+strings.Repeat("AAAA", 3000)+":"), client.MalformedSignature},
		"a long path":                     {func(m *wire) { m.uri = "/" + strings.Repeat("x", 40<<10) }, client.MalformedSignature},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSigWorld(t)
			guarded := client.NewGuard(w.cfg).RequireSignature(sigHost, "Usage.Example.com:443")(http.HandlerFunc(echo))
			m := w.post(t)
			c.change(&m)
			wantStatus := http.StatusUnauthorized
			switch c.want {
			case "":
				wantStatus = http.StatusOK
			case client.Misdirected:
				wantStatus = http.StatusMisdirectedRequest
			}
			if status, reason := m.to(t, guarded); status != wantStatus || reason != c.want {
				t.Errorf("%d %q, want %d %q", status, reason, wantStatus, c.want)
			}
		})
	}
}

// TestMustCover signs by hand what the client would never sign: a good signature of too little.
func TestMustCover(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	if status, reason := w.byHand(unsignedPost(), sigComponents, sigParams).to(t, w.guarded()); status != http.StatusOK {
		t.Fatalf("signed by hand: %d %s", status, reason)
	}
	for i, name := range sigComponents {
		some := slices.Delete(slices.Clone(sigComponents), i, i+1)
		if _, reason := w.byHand(unsignedPost(), some, sigParams).to(t, w.guarded()); reason != client.IncompleteSignature {
			t.Errorf("without %s: %q", name, reason)
		}
	}
	without := unsignedPost()
	without.header.Del("Content-Digest")
	some := slices.DeleteFunc(slices.Clone(sigComponents), func(s string) bool { return s == "content-digest" })
	if _, reason := w.byHand(without, some, sigParams).to(t, w.guarded()); reason != client.IncompleteSignature {
		t.Errorf("a body without a digest: %q", reason)
	}
	without.body = ""
	if status, reason := w.byHand(without, some, sigParams).to(t, w.guarded()); status != http.StatusOK {
		t.Errorf("without a body, and a digest: %d %q", status, reason)
	}
	more := unsignedPost()
	more.header.Set("Idempotency-Key", "17")
	w.cfg.Fields = []string{"Idempotency-Key"}
	if _, reason := w.byHand(more, sigComponents, sigParams).to(t, w.guarded()); reason != client.IncompleteSignature {
		t.Errorf("a field that must be covered: %q", reason)
	}
	withKey := w.byHand(more, append(slices.Clone(sigComponents), "idempotency-key"), sigParams)
	if status, reason := withKey.to(t, w.guarded()); status != http.StatusOK {
		t.Errorf("a field that is covered: %d %q", status, reason)
	}
	more.header.Set("Date", "Tue, 20 Apr 2021 02:07:55 GMT")
	w.cfg.Fields = nil
	for _, name := range []string{"date", "Date", ""} {
		want := client.MalformedSignature
		if name == "date" {
			want = ""
		}
		if _, reason := w.byHand(more, append(slices.Clone(sigComponents), name), sigParams).to(t, w.guarded()); reason != want {
			t.Errorf("with %q covered: %q, want %q", name, reason, want)
		}
	}
	for _, weak := range []string{"sha-512=:AAAA:", "sha-256=:AAAA:", "sha-256", "md5=?1, sha-256=77"} {
		bad := unsignedPost()
		bad.header.Set("Content-Digest", weak)
		if _, reason := w.byHand(bad, sigComponents, sigParams).to(t, w.guarded()); reason != client.MalformedSignature {
			t.Errorf("the digest %s: %q", weak, reason)
		}
	}
}

// TestOthersSign verifies what http-message-signatures 1.0.6, of npm, made with the key svc-2 and its own label.
func TestOthersSign(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	post := wire{
		method: http.MethodPost, host: "Billing.example.com:443", uri: "/v1/usage/a%20b?month=2024-01&x=%C3%A9", body: sigBody,
		header: http.Header{
			"Content-Type":    {"application/json"},
			"Content-Digest":  {"sha-256=:lTAnoxmdhMgDP9wEp6dBrlZKt60e/QlXM7BbpfsinaY=:"},
			"Signature":       {"sig1=:8T8QbwEx0R7T1PBU5GNTLdgmLGTLeVV5Z6aidvhn/Z83vaadrt/5PgMPNBsJx3lFy2VGhzFSJxRBh91QiuUxCQ==:"},
			"Signature-Input": {`sig1=("@method" "@authority" "@path" "@query" "content-digest" "content-type")` + sigParams},
		},
	}
	get := wire{
		method: http.MethodGet, host: sigHost, uri: "/",
		header: http.Header{
			"Signature":       {"sig1=:SqNkCsECIOfyetCZ3AoCVUBPDaw8fLszd/sSnRXiwrLKdhYyepmsYlJuSYck/gn/deTnul1MGxLApcVVbnwlBA==:"},
			"Signature-Input": {`sig1=("@method" "@authority" "@path" "@query")` + sigParams},
		},
	}
	for _, m := range []wire{post, get} {
		if status, reason := m.to(t, w.guarded()); status != http.StatusOK {
			t.Errorf("%s: %d %s", m.method, status, reason)
		}
		m.method = http.MethodPut
		if _, reason := m.to(t, w.guarded()); reason != events.InvalidSignature {
			t.Errorf("with another method: %s", reason)
		}
	}
}

// TestSeveralSignatures has others sign too, and a second one pretend to be ours.
func TestSeveralSignatures(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	const gateway = `gw=("@method");created=1705412600;keyid="gw";tag="gateway"`
	first, line, second := w.post(t), w.post(t), w.post(t)
	first.header.Set("Signature-Input", gateway+", "+first.header.Get("Signature-Input"))
	first.header.Set("Signature", "gw=:AAAA:, "+first.header.Get("Signature"))
	line.header.Add("Signature-Input", gateway)
	line.header.Add("Signature", "gw=:AAAA:")
	for name, m := range map[string]wire{"in one line": first, "in a line of its own": line} {
		if status, reason := m.to(t, w.guarded()); status != http.StatusOK {
			t.Errorf("a gateway's, %s: %d %s", name, status, reason)
		}
	}
	other := w.post(t)
	second.header.Add("Signature-Input", strings.Replace(other.header.Get("Signature-Input"), "omi=", "imo=", 1))
	second.header.Add("Signature", strings.Replace(other.header.Get("Signature"), "omi=", "imo=", 1))
	if _, reason := second.to(t, w.guarded()); reason != client.MalformedSignature {
		t.Errorf("two with our tag: %q", reason)
	}
	doubled := w.post(t)
	doubled.header.Add("Signature-Input", `omi=("@method");created=1705412600;keyid="`+sigTarget+`";nonce="`+sigNonce+`";tag="omi"`)
	if _, reason := doubled.to(t, w.guarded()); reason != client.IncompleteSignature {
		t.Errorf("the label once more, with less: %q", reason)
	}
	doubled = w.post(t)
	doubled.header.Add("Signature", "omi=:"+strings.Repeat("A", 86)+"==:")
	if _, reason := doubled.to(t, w.guarded()); reason != events.InvalidSignature {
		t.Errorf("another signature under the label: %q", reason)
	}
}

// TestCantBeChecked has the Auth Provider away: nobody passes, and nobody is told our insides.
func TestCantBeChecked(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	var log bytes.Buffer
	w.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	guarded := w.guarded()
	m := w.post(t)
	w.keys.away = errSigAway
	answer := m.answer(t, guarded)
	told := strings.Contains(answer.Body.String(), "insides")
	if answer.Code != http.StatusServiceUnavailable || answer.Header().Get("Retry-After") == "" || told {
		t.Errorf("%d %v %s", answer.Code, answer.Header(), answer.Body)
	}
	if !strings.Contains(log.String(), "insides") {
		t.Errorf("the log: %s", &log)
	}
	w.keys.away = nil
	if status, reason := m.to(t, guarded); status != http.StatusOK {
		t.Errorf("the same request afterwards: %d %s", status, reason)
	}
}

func TestChallenge(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	m := unsignedPost()
	answer := m.answer(t, w.guarded())
	header := answer.Header()
	if answer.Code != http.StatusUnauthorized || header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d %v", answer.Code, header)
	}
	const accept = `omi=("@method" "@authority" "@path" "@query" "content-digest" "content-type");created;alg="ed25519";tag="omi"`
	if header.Get("WWW-Authenticate") != "Signature" || header.Get("Accept-Signature") != accept {
		t.Errorf("the challenge: %v", header)
	}
}

func TestBodyLimit(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	w.cfg.MaxBody = int64(len(sigBody))
	if status, reason := w.post(t).to(t, w.guarded()); status != http.StatusOK {
		t.Errorf("a body as large as it may be: %d %s", status, reason)
	}
	w.cfg.MaxBody--
	if status, _ := w.post(t).to(t, w.guarded()); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a body that is too large: %d", status)
	}
	untouched := slowBody{strings.NewReader(""), func() { t.Error("the body of a stranger was read") }}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/usage", untouched)
	r.Host = sigHost
	answer := httptest.NewRecorder()
	w.guarded().ServeHTTP(answer, r)
	if answer.Code != http.StatusUnauthorized {
		t.Errorf("a stranger: %d", answer.Code)
	}
}

// TestUnderPrefix mounts the guard where a handler around it changes the URL.
func TestUnderPrefix(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	if status, reason := w.post(t).to(t, http.StripPrefix("/v1", w.guarded())); status != http.StatusOK {
		t.Errorf("%d %s", status, reason)
	}
}

func TestCaller(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	m := w.byHand(unsignedPost(), sigComponents, sigParams)
	var got client.Caller
	guarded := client.NewGuard(w.cfg).RequireSignature(sigHost)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got, _ = client.CallerFrom(r.Context())
	}))
	m.to(t, guarded)
	want := client.Caller{
		Target: w.id.target, Nonce: sigMust(events.ParseNonce(sigNonce)), Created: time.Unix(sigTime, 0),
		Answer: events.VerifyAnswer{Result: events.Accepted, Key: events.KeyCurrent, PublicKey: w.key.Public()},
	}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if _, ok := client.CallerFrom(t.Context()); ok {
		t.Error("a caller of nothing")
	}
}
