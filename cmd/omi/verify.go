package main

import (
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/signing"
)

type verifyCmd struct {
	session.Connection     `embed:""`
	session.OptionalTarget `embed:""`
	signing.MessageFlag    `embed:""`
	Signature              signing.SignatureFlag `placeholder:"SIG" help:"The signature, as omi sign prints it."`
	Query                  string                `placeholder:"FILE" help:"What omi sign --json printed; - is the standard input."`
	Registry               bool                  `help:"Ask the registry instead of Auth, and check the signature here."`
	PublicKey              string                `placeholder:"ed25519:…" help:"Check against this key alone, without a broker."`
}

// Help is shown by --help.
func (*verifyCmd) Help() string {
	return `The answer is accepted (by the current key, or by one in grace and until when), or refused
with a reason and exit code 1. The command asks Auth, as the application's servers do. With
--registry it asks the registry, whose answer is signed, and checks the signature itself.

  printf %s 'hello' | omi verify --app-id org.example.dev --service-id cms --signature SIG
  printf %s 'hello' | omi verify --app-id org.example.dev --service-id cms --signature SIG --registry
  omi verify --public-key ed25519:… --signature SIG --in invoice.pdf`
}

// Run verifies a signature.
func (c *verifyCmd) Run() error { return signing.Question(*c).Run() }
