package client_test

import (
	"bufio"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
)

// TestSigningPage takes the examples of docs/signing.md at their word: the Guard lets them pass, the text that they say is
// signed is signed, and the client writes the same but for the nonce.
func TestSigningPage(t *testing.T) {
	t.Parallel()
	w := newSigWorld(t)
	page := string(sigMust(os.ReadFile("../docs/signing.md")))
	blocks := regexp.MustCompile("(?s)```([a-z]*)\n(.*?)\n```").FindAllStringSubmatch(page, -1)
	if len(blocks) != 4 || blocks[0][1] != "http" || blocks[2][1] != "nats" {
		t.Fatalf("the page has %d blocks, want a request, its base, a message and its base", len(blocks))
	}

	head, body, _ := strings.Cut(blocks[0][2], "\n\n")
	text := strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body
	r := sigMust(http.ReadRequest(bufio.NewReader(strings.NewReader(text))))
	m := wire{method: r.Method, host: r.Host, uri: r.RequestURI, header: r.Header, body: body}
	if status, reason := m.to(t, w.guarded()); status != http.StatusOK {
		t.Errorf("the request of the page: %d %s", status, reason)
	}
	w.checkBase(t, blocks[1][2], r.Header)
	sameButNonce(t, r.Header, w.post(t).header)

	head, body, _ = strings.Cut(blocks[2][2], "\n\n")
	lines := strings.Split(head, "\n")
	msg := nats.NewMsg(strings.TrimPrefix(lines[0], "PUB "))
	msg.Data = []byte(body)
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		msg.Header.Add(name, value)
	}
	if _, err := client.NewGuard(w.cfg).VerifyMsg(t.Context(), msg); err != nil {
		t.Errorf("the message of the page: %v", err)
	}
	w.checkBase(t, blocks[3][2], msg.Header)
	again := nats.NewMsg(msg.Subject)
	again.Data = msg.Data
	again.Header.Set("Content-Type", "application/json")
	if err := client.SignMsg(w.id, again); err != nil {
		t.Fatal(err)
	}
	sameButNonce(t, msg.Header, again.Header)
}

// checkBase says whether this text has the signature of the header, by the standard library's Ed25519 and the vectors' key.
func (w *sigWorld) checkBase(t *testing.T, base string, header map[string][]string) {
	t.Helper()
	text := strings.Trim(strings.TrimPrefix(header["Signature"][0], "omi="), ":=")
	text = strings.NewReplacer("+", "-", "/", "_").Replace(text)
	if got := w.key.Sign([]byte(base)).String(); got != text {
		t.Errorf("the signature of\n%s\nis %s, and the page says %s", base, got, text)
	}
}

func sameButNonce(t *testing.T, want, got map[string][]string) {
	t.Helper()
	varying := regexp.MustCompile(`created=\d+|nonce="[A-Za-z0-9_-]{22}"`)
	for _, name := range []string{"Signature-Input", "Content-Digest"} {
		page, ours := varying.ReplaceAllString(want[name][0], ""), varying.ReplaceAllString(got[name][0], "")
		if page != ours {
			t.Errorf("the page has\n%s\nand the client writes\n%s", page, ours)
		}
	}
}
