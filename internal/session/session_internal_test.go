package session

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry"
)

// selfSigned is the configuration of a server that nobody trusts.
func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}
}

// TestNotLetIn: a broker that is there and refuses is another matter than one that is away, and another one has to fix it.
func TestNotLetIn(t *testing.T) {
	t.Parallel()
	guarded := testenv.ServeOptions(t, &server.Options{Username: "u", Password: "right"})
	encrypted := testenv.ServeOptions(t, &server.Options{TLS: true, TLSConfig: selfSigned(t)})
	for name, c := range map[string]struct {
		url  string
		code int
		want string
	}{
		"no password":    {guarded, process.ExitUsage, "does not let this user in"},
		"wrong password": {strings.Replace(guarded, "://", "://u:s3cret@", 1), process.ExitUsage, "does not let this user in"},
		"certificate":    {encrypted, process.ExitUsage, "name its authority by --nats-ca"},
		"no TLS":         {strings.Replace(testenv.ServeOptions(t, &server.Options{}), "nats://", "tls://", 1), process.ExitUsage, "has no TLS"},
		"nobody":         {"nats://127.0.0.1:1", process.ExitUnreachable, "no broker answers"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flags := Connection{NATS: process.NATS{URL: c.url}, Timeout: 10 * time.Second}
			err := flags.WithBroker(func(context.Context, *Session) error { return nil })
			if got := process.ExitCode(err); got != c.code || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("code %d, %v; want %d and %q", got, err, c.code, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("it shows the password: %v", err)
			}
		})
	}
}

// TestDenied: what an account may not is why no answer comes, and in vain does a person look for a registry that is slow.
func TestDenied(t *testing.T) {
	t.Parallel()
	url := testenv.ServeOptions(t, &server.Options{JetStream: true, Users: []*server.User{
		{Username: "operator", Password: "p"},
		{Username: "reader", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"omi.v1.requests.>"}},
		}},
	}})
	as := func(user string) string { return strings.Replace(url, "://", "://"+user+":p@", 1) }
	js := must(jetstream.New(testenv.Connect(t, as("operator"))))
	if err := registry.EnsureStreams(t.Context(), js, 0); err != nil {
		t.Fatal(err)
	}
	key := events.GenerateSigningKey()
	draft := NewDraft(events.Revocation, events.Target{App: must(events.ParseAppID("org.example.shop")), Service: must(events.ParseServiceID("cms"))})
	m, err := registryclient.Sign(draft, key.Private(), nil)
	if err != nil {
		t.Fatal(err)
	}
	flags := Connection{NATS: process.NATS{URL: as("reader")}, Timeout: 3 * time.Second}
	err = flags.WithBroker(func(ctx context.Context, s *Session) error {
		ctx, cancel := context.WithTimeout(ctx, flags.Timeout)
		defer cancel()
		_, err := s.Sender().Send(ctx, draft.Target, m, nil)
		return Unanswered(err)
	})
	const want = `the broker says: Permissions Violation for Publish to "omi.v1.requests.revocation.org.example.shop.cms"`
	if process.ExitCode(err) != process.ExitUsage || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "deadline") ||
		strings.Contains(err.Error(), "again") {
		t.Errorf("%v\nwant %s", err, want)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
