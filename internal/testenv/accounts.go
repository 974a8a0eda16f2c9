package testenv

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Accounts is one broker that serves as many: each account has its own streams, so their names
// don't collide, and an account costs next to nothing.
type Accounts struct {
	server *server.Server
	url    *url.URL
}

// NewAccounts starts a broker without accounts. It stops when the test ends.
func NewAccounts(t testing.TB) *Accounts {
	t.Helper()
	a := &Accounts{}
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		CustomClientAuthentication: a,
	})
	if err != nil {
		t.Fatalf("set up the broker: %v", err)
	}
	a.server = ns
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(time.Minute) {
		t.Fatal("the broker does not start")
	}
	if a.url, err = url.Parse(ns.ClientURL()); err != nil {
		t.Fatalf("read the broker's URL: %v", err)
	}
	return a
}

// Account creates an account, and returns the URL at which clients connect to it.
func (a *Accounts) Account(name string) (string, error) {
	account, _ := a.server.LookupOrRegisterAccount(name)
	if err := account.EnableJetStream(nil, nil); err != nil {
		return "", fmt.Errorf("enable JetStream for the account %s: %w", name, err)
	}
	own := *a.url
	own.User = url.UserPassword(name, "")
	return own.String(), nil
}

// Check puts a client into the account that has the client's user name. nats-server calls it.
func (a *Accounts) Check(c server.ClientAuthentication) bool {
	account, err := a.server.LookupAccount(c.GetOpts().Username)
	if err != nil {
		return false
	}
	c.RegisterUser(&server.User{Account: account})
	return true
}
