// Omi-registry is the App Registry's process: it serves rotation, binding and revocation requests, and keeps the
// registry's database.
package main

import (
	"os"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/internal/completion"
	"omiappreg.org/keyrotation/internal/process"
)

type cli struct {
	Serve   serveCmd   `cmd:"" default:"withargs" help:"Serve requests and lookups (the default)."`
	Migrate migrateCmd `cmd:"" help:"Bring the database's schema up to date, and end. Serve does so too."`
	Keygen  keygenCmd  `cmd:"" help:"Make the registry's signing key."`
	App     appCmd     `cmd:"" help:"The developers' apps: who may bind services."`
	NATS    natsCmd    `cmd:"" name:"nats" help:"Accounts at the broker: what each party may do there."`
	Check   checkCmd   `cmd:"" help:"Verify what must always hold in the database. Exit code 1: something is wrong."`

	DeadLetters deadLettersCmd `cmd:"" name:"deadletters" help:"Requests that could not be decided: list, show, and have them decided again."`
	Recover     recoverCmd     `cmd:"" help:"Bring back from the streams what a database lacks that was restored from an older backup. Exit code 1: something remains to be done."`
	Restore     restoreCmd     `cmd:"" help:"Put a copy of the registry's SQLite database in its place, which must be done by this command."`

	Completion completion.Command `cmd:"" help:"Print a script by which bash, zsh or fish complete commands, flags and files."`
}

const description = `The App Registry of OMI key rotation.

A first start:
  omi-registry keygen --out registry.pem
  omi-registry app add --app-id org.example.shop --master-key ed25519:...
  omi-registry --signing-key registry.pem

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable.`

func main() {
	os.Exit(process.Main(&cli{}, os.Args[1:], os.Stderr, kong.Name("omi-registry"), kong.Description(description),
		kong.Vars{"http_addr": "127.0.0.1:8081"}))
}
