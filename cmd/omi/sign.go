package main

import (
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/signing"
)

type signCmd struct {
	session.OptionalTarget `embed:""`
	signing.MessageFlag    `embed:""`
	Key                    string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The key that signs, or the folder of its key store."`
	JSON                   bool   `help:"Print the question for Auth, as omi verify --query takes it."`
}

// Help is shown by --help.
func (*signCmd) Help() string {
	return `Signs the bytes as they are: a newline at the end counts. No broker is needed, and nothing
is sent.

The command refuses a text that can be read as a request to the registry, or that begins as the
signature base of an HTTP message: anyone who has that signature could give the service another key,
or send a message in its name.

  printf %s 'hello' | omi sign --key cms.pem
  omi sign --key cms.pem --in invoice.pdf > invoice.sig

--json prints the question for Auth, also for POST /v1/verify. It needs --app-id and --service-id:

  printf %s 'hello' | omi sign --key cms.pem --app-id org.example.dev --service-id cms --json |
    omi verify --query -`
}

// Run signs a message.
func (c *signCmd) Run() error { return signing.Signature(*c).Run() }
