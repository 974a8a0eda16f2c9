// Package pin is `omi pin`: it remembers a service's keys, and tells its owner's changes from
// others.
package pin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// Command is `omi pin` for a kong grammar.
type Command struct {
	Add    addCmd    `cmd:"" default:"withargs" help:"Remember a service as it is now; a new pin accepts its changes."`
	Check  checkCmd  `cmd:"" help:"Report changes that you did not ask for; exit code 1 if there are any."`
	List   listCmd   `cmd:"" help:"Show the pins."`
	Remove removeCmd `cmd:"" help:"Forget a service."`
}

// Help is shown by --help.
func (*Command) Help() string {
	return `Anyone who copies your key can rotate it, and the registry can't tell that it was not you.
You can: a pin remembers your service's keys, and omi pin check reports what happened since.

  # once
  omi pin --app-id org.example.dev --service-id cms
  # regularly, for example from cron
  omi pin check

omi bind, rotate, reset and revoke update a pin, if they use the same file of pins.`
}

type addCmd struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
	Flag                `embed:""`
}

// Help is shown by --help.
func (*addCmd) Help() string {
	return `Get the registry's public key for --trust from its operator. Without it, the registry at the
broker is believed the first time, and the pin remembers its key.

  omi pin add --app-id org.example.dev --service-id cms --trust ed25519:…`
}

// Run pins a service as it is now.
func (c *addCmd) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	file, pins, err := c.load()
	if err != nil {
		return err
	}
	var was *pin
	if i := indexOf(pins, t); i >= 0 {
		was = &pins[i]
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		now, err := look(ctx, c.Connection, s, t, was)
		if err != nil {
			return err
		}
		err = file.update(func(pins []pin) ([]pin, error) {
			if i := indexOf(pins, t); i >= 0 {
				pins[i] = now
				return pins, nil
			}
			return append(pins, now), nil
		})
		if err != nil {
			return err
		}
		return printPinned(c.JSON, was, now)
	})
}

// look returns what a pin remembers. If the service is pinned already, the registry is not believed
// on first sight once more: without --trust, it is that of the pin.
func look(ctx context.Context, c session.Connection, s *session.Session, t events.Target, was *pin) (pin, error) {
	pinned := was != nil && !c.Trusts()
	if pinned {
		var err error
		if s, err = asPinned(s, was); err != nil {
			return pin{}, err
		}
	}
	record, err := s.Record(ctx, t)
	if pinned && errors.As(err, new(*events.Refusal)) {
		return pin{}, process.Refused(fmt.Errorf("%w: it is not the registry of the pin; if its operator confirms a new key, "+
			"give it with --trust", err))
	}
	if err != nil {
		return pin{}, err
	}
	return pin{
		AppID: t.App, ServiceID: t.Service, Origin: s.Trust.Origin(), RegistryPublicKeys: s.Trust.PublicKeys(),
		Sequence: record.Sequence, PublicKey: record.Current.PublicKey, PinnedAt: time.Now().Unix(),
	}, nil
}

// asPinned returns a session that trusts only the registry of a pin.
func asPinned(s *session.Session, p *pin) (*session.Session, error) {
	trust, err := events.NewTrust(p.Origin, p.RegistryPublicKeys...)
	if err != nil {
		return nil, process.Usagef("--pins: the pin of %s: %w", p.target(), err)
	}
	return &session.Session{Conn: s.Conn, JetStream: s.JetStream, Trust: trust}, nil
}

func printPinned(asJSON bool, was *pin, now pin) error {
	if asJSON {
		return process.PrintJSON(now)
	}
	before, key := "", "It is revoked."
	if was != nil && was.Sequence != now.Sequence {
		before = fmt.Sprintf(", and was at %d", was.Sequence)
	}
	if !now.PublicKey.IsZero() {
		key = "current key  " + now.PublicKey.String()
	}
	return process.Print("%s is pinned at sequence %d%s.\n  %s\n", now.target(), now.Sequence, before, key)
}

type listCmd struct {
	Flag `embed:""`
	JSON bool `help:"Print one JSON array."`
}

// Help is shown by --help.
func (*listCmd) Help() string {
	return `Shows the file of pins; omi pin check asks the registry.

  omi pin list`
}

// Run lists the pins.
func (c *listCmd) Run() error {
	file, pins, err := c.load()
	if err != nil {
		return err
	}
	if c.JSON {
		return process.PrintJSON(append([]pin{}, pins...))
	}
	if len(pins) == 0 {
		return process.Print("Nothing is pinned in %s. Begin with omi pin add.\n", file.path)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SERVICE\tSEQUENCE\tKEY\tREGISTRY\tSINCE")
	for _, p := range pins {
		key := "(revoked)"
		if !p.PublicKey.IsZero() {
			key = p.PublicKey.String()
		}
		printable.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", p.target(), p.Sequence, key, p.Origin, printable.Date(p.PinnedAt))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

var errNotPinned = errors.New("is not pinned")

type removeCmd struct {
	session.TargetFlags `embed:""`
	Flag                `embed:""`
	JSON                bool `help:"Print one JSON object: the removed pin."`
}

// Help is shown by --help.
func (*removeCmd) Help() string {
	return `omi pin check then no longer reports changes of the service. To accept a change, use omi pin
add instead.

  omi pin remove --app-id org.example.dev --service-id cms`
}

// Run removes a pin.
func (c *removeCmd) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	file, err := c.file()
	if err != nil {
		return err
	}
	var gone pin
	err = file.update(func(pins []pin) ([]pin, error) {
		i := indexOf(pins, t)
		if i < 0 {
			return nil, process.Refused(fmt.Errorf("%s %w in %s", t, errNotPinned, file.path))
		}
		gone = pins[i]
		return append(pins[:i:i], pins[i+1:]...), nil
	})
	switch {
	case err != nil:
		return err
	case c.JSON:
		return process.PrintJSON(gone)
	}
	return process.Print("%s is not pinned any more.\n", t)
}
