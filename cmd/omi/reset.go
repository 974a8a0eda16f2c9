package main

import (
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/session"
)

type resetCmd struct {
	session.Connection       `embed:""`
	keychange.DeveloperFlags `embed:""`
	keychange.StoreFlags     `embed:""`
	keychange.SavedFlags     `embed:""`
}

// Help is shown by --help.
func (*resetCmd) Help() string {
	return `All earlier keys of the service end at once, so a thief has nothing. The new key is made in
--key, which need not exist. If it exists, it must hold a key of this service; a key of another
service is never overwritten. After a crash, run the same command again. Only verifiers that use the
service's JWK Set still accept an earlier key, for as long as they may keep a set: 60 s by default
(docs/jwks.md).

  omi reset --app-id org.example.shop --service-id cms --master-key master.pem --key cms.pem

A key that is kept elsewhere must be saved before anything is sent: see --new-key and --before-send
in omi rotate --help.`
}

// Run resets a service. After a crash, the same command continues.
func (c *resetCmd) Run() error { return keychange.Reset(*c).Run() }
