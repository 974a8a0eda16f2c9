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
func (c *bindCmd) Run() error {
	return keychange.Bind(c.Connection, c.DeveloperFlags, c.Key, c.Describe)
}
