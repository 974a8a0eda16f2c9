// Omi-authsub is the Auth Provider's process: it applies the registry's events, and answers whether
// a signature is good now.
package main

import (
	"context"
	"os"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/internal/coreservice/cli"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
)

const description = `The Auth Provider of OMI key rotation: is this signature good now?

A first start, with the registry's public key, which omi-registry keygen printed:
  omi-authsub --trust ed25519:...

You can start any number of processes, on one database or each with its own. Each hears every event.
On one host, give each another --instance.

Exit codes: 0 done, 1 failed, 2 usage.`

func main() {
	os.Exit(process.Main(&cli.Instances{}, os.Args[1:], os.Stderr,
		kong.Name("omi-authsub"), kong.Description(description),
		kong.Vars{
			"durable": streams.AuthDurable, "durable_help": "How the names of the durables begin (authsub).",
			"forget_after": "10m", "database_url": "sqlite:omi-authsub.db", "http_addr": "127.0.0.1:8082",
		},
		kong.Bind(sqldb.Auth, cli.Open(open)),
	))
}

func open(ctx context.Context, c cli.Config) (cli.Service, error) {
	return authsub.New(ctx, authsub.Config{
		JetStream: c.JetStream, DatabaseURL: c.DatabaseURL, Durable: c.Durable, Instance: c.Instance, ForgetAfter: c.ForgetAfter,
		Trust: c.Trust, Metrics: c.Metrics, Log: c.Log,
	})
}
