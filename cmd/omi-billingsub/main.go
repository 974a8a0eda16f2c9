// Omi-billingsub is the Billing Service's process: it applies the registry's events, and answers
// whose key it was at a given time.
package main

import (
	"context"
	"os"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/billingsub"
	"omiappreg.org/keyrotation/internal/coreservice/cli"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
)

const description = `The Billing Service of OMI key rotation: whose key was this then?

A first start, with the registry's public key, which omi-registry keygen printed:
  omi-billingsub --trust ed25519:...

You can start any number of processes on one database; they share one durable. A process with
another database needs another --durable.

Exit codes: 0 done, 1 failed, 2 usage.`

func main() {
	process.RelaxGC()
	os.Exit(process.Main(&cli.Shared{}, os.Args[1:], os.Stderr,
		kong.Name("omi-billingsub"), kong.Description(description),
		kong.Vars{
			"durable":      streams.BillingDurable,
			"durable_help": "The durable (billingsub); one for each database.",
			"database_url": "sqlite:omi-billingsub.db", "http_addr": "127.0.0.1:8083",
		},
		kong.Bind(sqldb.Billing, cli.Open(open)),
	))
}

func open(ctx context.Context, c cli.Config) (cli.Service, error) {
	return billingsub.New(ctx, billingsub.Config{
		JetStream: c.JetStream, DatabaseURL: c.DatabaseURL, Durable: c.Durable, Trust: c.Trust, Metrics: c.Metrics, Log: c.Log,
	})
}
