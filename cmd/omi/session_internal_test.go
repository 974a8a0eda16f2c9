package main

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

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
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
			flags := connection{NATS: process.NATS{URL: c.url}, Timeout: 10 * time.Second}
			err := flags.withBroker(func(context.Context, *session) error { return nil })
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
			Publish: &server.SubjectPermission{Deny: []string{"omi.v1.requests.>", events.AuthVerifySubject}},
		}},
	}})
	as := func(user string) string { return strings.Replace(url, "://", "://"+user+":p@", 1) }
	if err := registry.EnsureStreams(t.Context(), jetStream(t, as("operator")), 0); err != nil {
		t.Fatal(err)
	}
	key := events.GenerateSigningKey()
	draft := newDraft(events.Revocation, events.Target{App: must(events.ParseAppID("org.example.shop")), Service: must(events.ParseServiceID("cms"))})
	m, err := newMessage(draft, key)
	if err != nil {
		t.Fatal(err)
	}
	flags := connection{NATS: process.NATS{URL: as("reader")}, Timeout: 3 * time.Second}
	err = flags.withBroker(func(ctx context.Context, s *session) error {
		ctx, cancel := context.WithTimeout(ctx, flags.Timeout)
		defer cancel()
		_, err := s.sender().Send(ctx, draft.Target, m, nil)
		return unanswered(err)
	})
	const want = `the broker says: Permissions Violation for Publish to "omi.v1.requests.revocation.org.example.shop.cms"`
	if process.ExitCode(err) != process.ExitUsage || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "deadline") ||
		strings.Contains(err.Error(), "again") {
		t.Errorf("%v\nwant %s", err, want)
	}
	question := verifyCmd{connection: flags}
	_, err = question.askAuth(events.VerifyQuery{Target: draft.Target, Signature: key.Sign(nil)})
	if process.ExitCode(err) != process.ExitUsage || !strings.Contains(err.Error(), "this account may not ask Auth") {
		t.Errorf("%v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
