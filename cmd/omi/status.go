package main

import (
	"context"

	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

type statusCmd struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
	Watch               bool `help:"Keep showing it until Ctrl-C."`
}

// Help is shown by --help.
func (*statusCmd) Help() string {
	return `The registry signs its answer about a service, and only that signature is believed.

  omi status --app-id org.example.dev --service-id cms
  # one object for each change
  omi status --app-id org.example.dev --service-id cms --watch --json

"has applied the last change" is what the broker and the core services say. When all of them have, a
new key is safe to use. --watch updates the text on a terminal; elsewhere it prints each change.`
}

// Run shows a service's record.
func (c *statusCmd) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	if c.Watch {
		return c.With(0, func(ctx context.Context, s *session.Session) error {
			return inspect.WatchRecord(ctx, s, t, c.Timeout, c.JSON)
		})
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		record, err := s.Record(ctx, t)
		if err != nil {
			return err
		}
		if c.JSON {
			return process.PrintJSON(record)
		}
		return process.Print("%s", inspect.RecordText(record))
	})
}
