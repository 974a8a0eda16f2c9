package access_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/access"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestWhoGetsIn: only a client with TLS and an nkey that the broker knows gets in.
func TestWhoGetsIn(t *testing.T) {
	t.Parallel()
	_, b := securedWorld(t)
	ca := nats.RootCAs(b.CA())
	stranger, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := stranger.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := nats.NkeyOptionFromSeed(b.Seed("cms"))
	if err != nil {
		t.Fatal(err)
	}
	registry, err := os.ReadFile(b.Seed("REGISTRY"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(registry))))
	if err != nil {
		t.Fatal(err)
	}
	registryKey, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		options []nats.Option
		ok      func(error) bool
	}{
		"as somebody": {[]nats.Option{ca, mine}, func(err error) bool { return err == nil }},
		"anonymously": {[]nats.Option{ca}, refused},
		"with a key that nobody knows": {
			[]nats.Option{ca, nats.Nkey(public, stranger.Sign)}, refused,
		},
		"as the registry, with another key": {[]nats.Option{ca, nats.Nkey(registryKey, stranger.Sign)}, refused},
		"with a password":                   {[]nats.Option{ca, nats.UserInfo("registry", "registry")}, refused},
		"without knowing its authority": {
			[]nats.Option{mine}, func(err error) bool { return errors.As(err, new(*tls.CertificateVerificationError)) },
		},
		"by another name than its certificate has": {
			[]nats.Option{ca, mine, nats.Secure(&tls.Config{ServerName: "example.org", MinVersion: tls.VersionTLS12})},
			func(err error) bool { return err != nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testenv.Eventually(t, patience, "the broker decides", func() error { // who takes more than two seconds is refused for that
				nc, err := nats.Connect(b.URL(), append(c.options, nats.Timeout(patience))...)
				if err == nil {
					nc.Close()
				}
				if !c.ok(err) {
					return fmt.Errorf("got %w", err)
				}
				return nil
			})
		})
	}
}

func refused(err error) bool { return errors.Is(err, nats.ErrAuthorization) }

// TestPlainText: a client without TLS gets only the broker's first message to every client.
func TestPlainText(t *testing.T) {
	t.Parallel()
	_, b := securedWorld(t)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("CONNECT {\"verbose\":true}\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	buffer := make([]byte, 1<<12)
	for err == nil { // until the broker ends the connection
		var n int
		n, err = conn.Read(buffer)
		said.Write(buffer[:n])
	}
	if !strings.Contains(said.String(), `"tls_required":true`) || strings.Contains(said.String(), "PONG") || strings.Contains(said.String(), "+OK") {
		t.Errorf("it said %q", said.String())
	}
}

// TestExample: the accounts that deploy/nats shows are those that omi-registry prints.
func TestExample(t *testing.T) {
	t.Parallel()
	shown, err := os.ReadFile(filepath.Join("..", "..", "deploy", "nats", "accounts.example.conf"))
	if err != nil {
		t.Fatal(err)
	}
	var nkeys []string
	for line := range strings.Lines(string(shown)) {
		if _, key, ok := strings.Cut(line, "nkey: "); ok {
			nkeys = append(nkeys, strings.TrimSpace(key))
		}
	}
	slices.Sort(nkeys)
	if len(nkeys) != 4 || len(slices.Compact(nkeys)) != 4 {
		t.Fatalf("got %d different nkeys, want 4", len(nkeys))
	}
	key := func(block string) string {
		_, rest, _ := strings.Cut(string(shown), block)
		_, rest, _ = strings.Cut(rest, "nkey: ")
		key, _, _ := strings.Cut(rest, "\n")
		return key
	}
	app := target(t, cms).App
	want := access.Service(target(t, cms), key("# The service "+cms)).String() +
		access.Service(target(t, blog), key("# The service "+blog)).String() +
		access.Developer(app, key("# The developer ")).String() + access.Receiver("shop", key("# The receiver "), 8).String()
	if !strings.HasSuffix(string(shown), want) {
		t.Errorf("deploy/nats/accounts.example.conf is not what omi-registry nats prints, which is:\n%s", want)
	}
}

// TestLargestRequest: what the broker adds to a message on its way between accounts does not count
// for its size.
func TestLargestRequest(t *testing.T) {
	t.Parallel()
	w, _ := securedWorld(t)
	js := w.jetStream(w.connect("cms", func(err error) { t.Error(err) }))
	const header = len("NATS/1.0\r\nNats-Msg-Id: 1234\r\n\r\n")
	for size, fits := range map[int]bool{events.MaxMessage: true, events.MaxMessage + 1: false} {
		_, err := js.Publish(t.Context(), events.RotationSubject+cms, make([]byte, size-header), jetstream.WithMsgID(strconv.Itoa(size)))
		if (err == nil) != fits {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
