package main

import (
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/session"
)

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
func (c *revokeCmd) Run() error {
	return keychange.Revoke(c.Connection, c.DeveloperFlags, c.ProviderReceipt)
}
