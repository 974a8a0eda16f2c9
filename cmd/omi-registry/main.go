// Omi-registry is the App Registry's process: it serves rotation, binding and revocation requests,
// and keeps the registry's database.
package main

import (
	"os"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/internal/completion"
	"omiappreg.org/keyrotation/internal/keygen"
	"omiappreg.org/keyrotation/internal/process"
)

type cli struct {
	Serve   serveCmd    `cmd:"" default:"withargs" help:"Serve requests and lookups (the default)."`
	Migrate migrateCmd  `cmd:"" help:"Bring the database's schema up to date. Serve does so too."`
	Keygen  keygen.Pair `cmd:"" help:"Make the registry's signing key."`
	App     appCmd      `cmd:"" help:"Manage the developers' apps, which may bind services."`
	NATS    natsCmd     `cmd:"" name:"nats" help:"Print accounts for the broker: what each party may do there."`
	Check   checkCmd    `cmd:"" help:"Verify the database. Exit code 1: something is wrong."`

	DeadLetters deadLettersCmd `cmd:"" name:"deadletters" help:"List and show requests that could not be decided, and retry them."`
	Recover     recoverCmd     `cmd:"" help:"Recover the changes that a restored database lacks from the streams."`
	Restore     restoreCmd     `cmd:"" help:"Restore the registry's SQLite database from a copy."`

	Completion completion.Command `cmd:"" help:"Print a completion script for bash, zsh or fish."`
}

const description = `The App Registry of OMI key rotation.

A first start:
  omi-registry keygen --out registry.pem
  omi-registry app add --app-id org.example.shop --master-key ed25519:...
  omi-registry --signing-key registry.pem

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable.`

func main() {
	process.RelaxGC()
	os.Exit(process.Main(&cli{}, os.Args[1:], os.Stderr, kong.Name("omi-registry"), kong.Description(description),
		kong.Vars{"http_addr": "127.0.0.1:8081"}))
}
