package main

import (
	"context"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

type watchCmd struct {
	session.Connection `embed:""`
	AppID              string `name:"app-id" env:"OMI_APP_ID" placeholder:"ID" help:"Only this app's services (all apps)."`
	ServiceID          string `name:"service-id" env:"OMI_SERVICE_ID" placeholder:"ID" help:"Only this service."`
	All                bool   `help:"Begin with the messages that the streams hold."`
}

// Help is shown by --help.
func (*watchCmd) Help() string {
	return `Runs until Ctrl-C. If the broker goes away, the command waits for it, and then shows the
messages that came meanwhile. A message that the registry did not sign is shown as untrusted,
because anyone may publish where the broker lets them. A replaced Master Key is shown when it
happens, as a notice of its app; omi-registry app show lists earlier ones.

  # new messages of all services
  omi watch
  # one app: first what the streams hold, and then new messages
  omi watch --all --app-id org.example.dev
  # one object for each message
  omi watch --json`
}

// Run shows events and receipts until a signal comes.
func (c *watchCmd) Run() error {
	services, err := c.services()
	if err != nil {
		return err
	}
	return c.With(0, func(ctx context.Context, s *session.Session) error {
		return inspect.Follow(ctx, inspect.Feed{Session: s, App: c.AppID, Services: services, All: c.All, JSON: c.JSON})
	})
}

// services returns the end of the subjects that the flags ask for.
func (c *watchCmd) services() (string, error) {
	if c.AppID == "" {
		if c.ServiceID != "" {
			return "", process.Usagef("--service-id goes with --app-id")
		}
		return ">", nil
	}
	app, err := events.ParseAppID(c.AppID)
	if err != nil {
		return "", process.Usagef("--app-id: %w", err)
	}
	if c.ServiceID == "" {
		return app.String() + ".>", nil
	}
	t, err := session.TargetFlags{AppID: c.AppID, ServiceID: c.ServiceID}.Target()
	return t.String(), err
}
