package main

import (
	"omiappreg.org/keyrotation/internal/doctor"
	"omiappreg.org/keyrotation/internal/session"
)

type doctorCmd struct {
	session.Connection     `embed:""`
	session.OptionalTarget `embed:""`
	Key                    string `env:"OMI_KEY" placeholder:"FILE" help:"A service's key: check its file, and what the registry says of it."`
	MasterKey              string `env:"OMI_MASTER_KEY" placeholder:"FILE" help:"A developer's Master Key: check its file, and whether it may bind."`
}

// Help is shown by --help.
func (*doctorCmd) Help() string {
	return `Checks the broker, its streams and their consumers, the registry, Auth and Billing, the
clock and what this account may do. With --app-id, --service-id and --key it also checks one service
and its key. Each line is ok, a warning, or wrong. Exit code 1: something is wrong. Exit code 3:
there is no broker.

  omi doctor --trust ed25519:…
  omi doctor --trust ed25519:… --app-id org.example.dev --service-id cms --key cms.pem

It leaves nothing behind. To see whether the broker can store, it makes a stream of its own, stores
one message and deletes the stream. To see what an account may publish, it sends messages that the
stream refuses.`
}

// Run makes every check.
func (c *doctorCmd) Run() error { return doctor.Run(doctor.Config(*c)) }
