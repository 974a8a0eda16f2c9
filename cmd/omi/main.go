// Omi is the tool for people. It shows key rotation at work (demo), runs the whole stack on one
// machine (dev), and does what the developer of a service needs: keys, binding, rotation, reset,
// revocation, and a look at what happens.
package main

import (
	"os"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/internal/bench"
	"omiappreg.org/keyrotation/internal/completion"
	"omiappreg.org/keyrotation/internal/demo"
	"omiappreg.org/keyrotation/internal/doctor"
	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/keygen"
	"omiappreg.org/keyrotation/internal/pin"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/signing"
)

type cli struct {
	Demo    demo.Command         `cmd:"" help:"See a key rotate while clients keep signing; there is nothing to install."`
	Dev     devCmd               `cmd:"" help:"Run broker, registry, Auth and Billing here, and keep their state."`
	Keygen  keygen.Request       `cmd:"" help:"Make a key, for a service or as a developer's Master Key, or convert one."`
	Bind    keychange.Binding    `cmd:"" help:"Bind a service to its first key, signed by the developer's Master Key."`
	Rotate  rotateCmd            `cmd:"" help:"Give a service a new key, signed by its current one."`
	Reset   keychange.Reset      `cmd:"" help:"Master Reset: replace a lost or compromised key, signed by the Master Key."`
	Revoke  keychange.Revocation `cmd:"" help:"Decommission a service: all its keys end at once."`
	Status  inspect.Status       `cmd:"" help:"Show a service's keys, and who has applied the last change."`
	History inspect.History      `cmd:"" help:"Show every key that a service ever had."`
	Watch   inspect.Watch        `cmd:"" help:"Show events and receipts as they come."`
	Sign    signing.Signature    `cmd:"" help:"Sign a message with a service's key."`
	Verify  signing.Question     `cmd:"" help:"Ask whether a signature is good now."`
	Pin     pin.Command          `cmd:"" help:"Remember a service's keys, and detect changes that are not yours."`
	Doctor  doctor.Config        `cmd:"" help:"Find what is wrong with a deployment or a key, and how to fix it."`
	Bench   bench.Config         `cmd:"" help:"Measure throughput, latency and CPU of the whole path, on real parts."`

	Completion completion.Command `cmd:"" help:"Print a completion script for bash, zsh or fish."`
}

// rotateCmd adds --dry-run's checks, which are those of omi doctor.
type rotateCmd struct {
	keychange.Rotation `embed:""`
}

// Run rotates a service's key.
func (c *rotateCmd) Run() error {
	if c.DryRun {
		return doctor.DryRun(c.Rotation)
	}
	return c.Rotation.Run()
}

const description = `OMI key rotation, for people.

Start with:
  omi demo        see it happen, in a few seconds
  omi dev         keep the same stack running; it prints what to try next

Exit codes: 0 done, 1 refused (with the receipt's reason) or failed, 2 usage, 3 unreachable.`

func main() {
	process.RelaxGC()
	os.Exit(process.Main(&cli{}, os.Args[1:], os.Stderr, kong.Name("omi"), kong.Description(description)))
}
