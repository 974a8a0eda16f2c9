package main

import (
	"time"

	"omiappreg.org/keyrotation/internal/doctor"
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/session"
)

type rotateCmd struct {
	session.Connection   `embed:""`
	session.TargetFlags  `embed:""`
	keychange.StoreFlags `embed:""`
	keychange.SavedFlags `embed:""`
	GracePeriod          *time.Duration `xor:"grace" placeholder:"300s" help:"How long the old key stays valid, at most the registry's own period."`
	Emergency            bool           `xor:"grace" help:"The key may be stolen: end it and every earlier key at once."`
	JWKS                 bool           `name:"jwks" help:"With --wait propagated: wait until no cache has an older JWK Set."`
	DryRun               bool           `help:"Check everything; send nothing and write nothing."`
}

// Help is shown by --help.
func (*rotateCmd) Help() string {
	return `The new key and the request are on the disk before anything is sent. After a crash, run the
same command again: it sends the same bytes, and the registry gives the same answer.

  omi rotate --app-id org.example.shop --service-id cms --key cms.pem
  omi rotate --app-id org.example.shop --service-id cms --key cms.pem --wait propagated
  omi rotate --app-id org.example.shop --service-id cms --key cms.pem --dry-run

  --wait            propagated: until every core service has applied the change, and each is shown
                    when it has, or until half of the grace period is over (2 s if the old key ends
                    at once). The file holds the old key until then
  --jwks            for a service that others verify by its JWK Set: the file also holds the old key
                    until no cache has an older set
  --grace-period    whole seconds; the default is the registry's own period. 0s ends the old key
                    alone, and keys in grace stay so
  --emergency       ends keys in grace, too

While a service (package client) has its key store open, it rotates by itself, and this command
refuses.

A key that is kept in a Secret or a vault must be saved there before anything is sent, because a job
can end at any time:

  omi keygen --out next.pem && save next.pem
  # may be repeated: it then says that it is done, and does not rotate again
  omi rotate … --key cms.pem --new-key next.pem
  omi rotate … --key cms.pem --before-send 'save "$OMI_NEW_KEY_FILE"'

The command of --before-send gets the file's name in OMI_NEW_KEY_FILE, and also OMI_NEW_PUBLIC_KEY,
OMI_APP_ID and OMI_SERVICE_ID. Its output goes to the standard error. If it fails, nothing is sent,
and the exit code is 1. The next run gives it the same key.`
}

// Run rotates a service's key.
func (c *rotateCmd) Run() error {
	if c.DryRun {
		return doctor.DryRun(keychange.Rotation(*c))
	}
	return keychange.Rotation(*c).Run()
}
