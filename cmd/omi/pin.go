package main

import (
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/pin"
	"omiappreg.org/keyrotation/internal/session"
)

type pinCmd struct {
	Add    pinAddCmd    `cmd:"" default:"withargs" help:"Remember a service as it is now; a new pin accepts its changes."`
	Check  pinCheckCmd  `cmd:"" help:"Report changes that you did not ask for; exit code 1 if there are any."`
	List   pinListCmd   `cmd:"" help:"Show the pins."`
	Remove pinRemoveCmd `cmd:"" help:"Forget a service."`
}

// Help is shown by --help.
func (*pinCmd) Help() string {
	return `Anyone who copies your key can rotate it, and the registry can't tell that it was not you.
You can: a pin remembers your service's keys, and omi pin check reports what happened since.

  # once
  omi pin --app-id org.example.dev --service-id cms
  # regularly, for example from cron
  omi pin check

omi bind, rotate, reset and revoke update a pin, if they use the same file of pins.`
}

type pinAddCmd struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
	pin.Flag            `embed:""`
}

// Help is shown by --help.
func (*pinAddCmd) Help() string {
	return `Get the registry's public key for --trust from its operator. Without it, the registry at the
broker is believed the first time, and the pin remembers its key.

  omi pin add --app-id org.example.dev --service-id cms --trust ed25519:…`
}

// Run pins a service as it is now.
func (c *pinAddCmd) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	return pin.Add(c.Connection, c.Flag, t)
}

type pinListCmd struct {
	pin.Flag `embed:""`
	JSON     bool `help:"Print one JSON array."`
}

// Help is shown by --help.
func (*pinListCmd) Help() string {
	return `Shows the file of pins; omi pin check asks the registry.

  omi pin list`
}

// Run lists the pins.
func (c *pinListCmd) Run() error { return pin.List(c.Flag, c.JSON) }

type pinRemoveCmd struct {
	session.TargetFlags `embed:""`
	pin.Flag            `embed:""`
	JSON                bool `help:"Print one JSON object: the removed pin."`
}

// Help is shown by --help.
func (*pinRemoveCmd) Help() string {
	return `omi pin check then no longer reports changes of the service. To accept a change, use omi pin
add instead.

  omi pin remove --app-id org.example.dev --service-id cms`
}

// Run removes a pin.
func (c *pinRemoveCmd) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	return pin.Remove(c.Flag, t, c.JSON)
}

type pinCheckCmd struct {
	session.Connection     `embed:""`
	session.OptionalTarget `embed:""`
	pin.Flag               `embed:""`
	Key                    []string `env:"OMI_KEY" sep:"none" placeholder:"FILE" help:"A key that you hold: changes that led to it are yours. Repeatable."`
}

// Help is shown by --help.
func (*pinCheckCmd) Help() string {
	return `Compares the registry's signed history with the pin, for all pinned services or for one.
Exit code 0: nothing changed, or the holder of --key changed it. Exit code 1: look at what happened.

  omi pin check --app-id org.example.dev --service-id cms --key cms.pem

The key before signs each rotation. So if the current key is yours, all rotations since your last
binding or Master Reset are yours, too, and the pin follows them.`
}

// Run checks pins.
func (c *pinCheckCmd) Run() error {
	t, named, err := c.Target()
	if err != nil {
		return err
	}
	var only *events.Target
	if named {
		only = &t
	}
	return pin.Check(c.Connection, c.Flag, only, c.Key)
}
