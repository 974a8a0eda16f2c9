package main

import (
	"context"
	"os"

	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

type historyCmd struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
}

// Help is shown by --help.
func (*historyCmd) Help() string {
	return `Shows which event brought each key, and from when until when it is accepted. A key without
an end is the current one. The registry signs the list, and only that signature is believed.

  omi history --app-id org.example.dev --service-id cms

omi pin says whether you asked for all of it.`
}

// Run shows a service's history.
func (c *historyCmd) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		history, err := s.History(ctx, t)
		if err != nil {
			return err
		}
		if c.JSON {
			return process.PrintJSON(history)
		}
		return inspect.PrintHistory(os.Stdout, history)
	})
}
