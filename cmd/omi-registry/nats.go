package main

import (
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/access"
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/streams"
)

type natsCmd struct {
	Service   natsServiceCmd   `cmd:"" help:"Print a service's account: it rotates its key, and looks others up."`
	Developer natsDeveloperCmd `cmd:"" help:"Print a developer's account: it binds, resets and revokes services."`
	Receiver  natsReceiverCmd  `cmd:"" help:"Print the account of a receiver that verifies by itself (client.Verifier)."`
}

// Help is shown by --help.
func (*natsCmd) Help() string {
	return `Prints one party's account for the broker of deploy/nats. Append it to accounts.conf, and
let the broker reload that file.

  # the service's owner; prints U…
  omi keygen --format nkey --out cms.nk
  omi-registry nats service --app-id org.example.shop --service-id cms --nkey U… >> accounts.conf
  # run this twice: a new account's imports count from the second reload on
  nats-server --signal reload`
}

// userKey is the flag with the account's user.
type userKey struct {
	NKey string `name:"nkey" required:"" placeholder:"U…" help:"The public nkey of the user, which omi keygen --format nkey printed."`
}

// public returns the key in the form of the broker's configuration.
func (k userKey) public() (string, error) {
	key, err := keyformat.Parse([]byte(k.NKey))
	if err != nil {
		return "", process.Usagef("--nkey: %w", err)
	}
	text, err := keyformat.EncodePublic(key.Public, keyformat.NKey)
	return strings.TrimSpace(string(text)), err
}

// print prints the account of this user.
func (k userKey) print(account func(nkey string) access.Account) error {
	nkey, err := k.public()
	if err != nil {
		return err
	}
	return process.Print("%s", printable.Composed(account(nkey).String()))
}

type natsServiceCmd struct {
	AppID     string `name:"app-id" required:"" placeholder:"ID" help:"The app, for example org.example.shop."`
	ServiceID string `name:"service-id" required:"" placeholder:"ID" help:"The service, for example cms."`
	userKey   `embed:""`
}

// Run prints the account.
func (c *natsServiceCmd) Run() error {
	app, err := parseApp(c.AppID)
	if err != nil {
		return err
	}
	service, err := events.ParseServiceID(c.ServiceID)
	if err != nil {
		return process.Usagef("--service-id: %w", err)
	}
	return c.print(func(nkey string) access.Account {
		return access.Service(events.Target{App: app, Service: service}, nkey)
	})
}

type natsDeveloperCmd struct {
	AppID   string `name:"app-id" required:"" placeholder:"ID" help:"The app, for example org.example.shop."`
	userKey `embed:""`
}

// Run prints the account.
func (c *natsDeveloperCmd) Run() error {
	app, err := parseApp(c.AppID)
	if err != nil {
		return err
	}
	return c.print(func(nkey string) access.Account { return access.Developer(app, nkey) })
}

type natsReceiverCmd struct {
	Name      string `required:"" placeholder:"NAME" help:"The receiver's name, as in client.VerifierConfig.Receiver."`
	Consumers int    `default:"8" help:"How many consumers it may have (${default}): one a process, some for restarts."`
	userKey   `embed:""`
}

// Help is shown by --help.
func (*natsReceiverCmd) Help() string {
	return `The name has lower case letters, digits, hyphens and underscores. Each process of the
receiver needs one consumer, and some more are needed for restarts.`
}

// Run prints the account.
func (c *natsReceiverCmd) Run() error {
	if _, err := events.ParseServiceID(c.Name); err != nil { // one label, as a service id is
		return process.Usagef("--name: lower case letters, digits, hyphens and underscores, not %q", c.Name)
	}
	if c.Consumers < 1 || c.Consumers > streams.ReceiverConsumers {
		return process.Usagef("--consumers: want a number from 1 to %d, not %d", streams.ReceiverConsumers, c.Consumers)
	}
	return c.print(func(nkey string) access.Account { return access.Receiver(c.Name, nkey, c.Consumers) })
}

func parseApp(id string) (events.AppID, error) {
	app, err := events.ParseAppID(id)
	if err != nil {
		return app, process.Usagef("--app-id: %w", err)
	}
	return app, nil
}
