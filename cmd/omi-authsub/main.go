// Omi-authsub is the Auth Provider's process: it applies the registry's events, and answers whether a signature is good
// now.
package main

import (
	"context"
	"os"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/streams"
)

const description = `The Auth Provider's subscriber of OMI key rotation: who may pass now.

A first start:
  omi-authsub --trust ed25519:...    the registry's public key, which omi-registry keygen printed
Any number of them can be started so, on one database or each with its own: each hears every event. On one host, each takes
another --instance.

Exit codes: 0 done, 1 failed, 2 usage.`

func main() {
	os.Exit(process.Main(&process.Instances{}, os.Args[1:], os.Stderr,
		kong.Name("omi-authsub"), kong.Description(description),
		kong.Vars{
			"durable": streams.AuthDurable, "durable_help": "How the names of the durables on the stream of invalidations begin (authsub).",
			"forget_after": "10m", "database_url": "sqlite:omi-authsub.db", "http_addr": "127.0.0.1:8082",
		},
		kong.Bind(sqldb.Auth, process.OpenService(open), process.OpenExistingStore(subscriber.OpenExistingAuth)),
	))
}

func open(ctx context.Context, c process.SubscriberConfig) (process.Service, error) {
	return authsub.New(ctx, authsub.Config{
		JetStream: c.JetStream, DatabaseURL: c.DatabaseURL, Durable: c.Durable, Instance: c.Instance, ForgetAfter: c.ForgetAfter,
		Trust: c.Trust, Metrics: c.Metrics, Log: c.Log,
	})
}
