package signing

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestMayNotAskAuth: an account that may not ask is told so at once, and what needs no Auth.
func TestMayNotAskAuth(t *testing.T) {
	t.Parallel()
	url := testenv.ServeOptions(t, &server.Options{Users: []*server.User{
		{Username: "reader", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{events.AuthVerifySubject}},
		}},
	}})
	target, err := events.ParseTarget("org.example.shop.cms")
	if err != nil {
		t.Fatal(err)
	}
	c := Question{Connection: session.Connection{
		NATS: process.NATS{URL: strings.Replace(url, "://", "://reader:p@", 1)}, Timeout: 3 * time.Second,
	}}
	_, err = c.askAuth(events.VerifyQuery{Target: target, Signature: events.GenerateSigningKey().Sign(nil)})
	if process.ExitCode(err) != process.ExitUsage || !strings.Contains(err.Error(), "this account may not ask Auth") {
		t.Errorf("%v", err)
	}
}
