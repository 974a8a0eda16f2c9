package main

import (
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/session"
)

type bindCmd struct {
	session.Connection       `embed:""`
	keychange.DeveloperFlags `embed:""`
	Key                      string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The first key's file, or the folder of its key store; made if missing."`

	Describe keychange.DescribeFlags `embed:""`
}

// Help is shown by --help.
func (*bindCmd) Help() string {
	return `The registry must know the app and its Master Key: its operator adds it. A --key that ends
in a slash is a folder, the key store of a service that uses package client. If the answer was lost,
run the command again: it says the same.

  omi bind --app-id org.example.shop --service-id cms --master-key master.pem --key cms.pem
  omi bind --app-id org.example.shop --service-id cms --master-key master.pem --key /var/lib/cms/keys/`
}

// Run binds a service.
func (c *bindCmd) Run() error { return keychange.Binding(*c).Run() }

type revokeCmd struct {
	session.Connection       `embed:""`
	keychange.DeveloperFlags `embed:""`
	ProviderReceipt          string `placeholder:"FILE" help:"A JSON object to keep with the record, unchanged."`
}

// Help is shown by --help.
func (*revokeCmd) Help() string {
	return `Nothing that the service signs is accepted any more, and no key of the service can change
that. The developer can bind it again, with a key that was never used. Verifiers that use its JWK
Set may have a copy: docs/jwks.md says for how long.

  omi revoke --app-id org.example.shop --service-id cms --master-key master.pem`
}

// Run revokes a service.
func (c *revokeCmd) Run() error { return keychange.Revocation(*c).Run() }
