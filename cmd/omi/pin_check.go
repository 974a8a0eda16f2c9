package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

type pinCheckCmd struct {
	session.Connection     `embed:""`
	session.OptionalTarget `embed:""`
	pinsFlag               `embed:""`
	Key                    []string `env:"OMI_KEY" sep:"none" placeholder:"FILE" help:"A key that you hold: changes that led to it are yours. Repeatable."`
}

// Help is shown by --help.
func (*pinCheckCmd) Help() string {
	return `Compares the registry's signed history with the pin, for all pinned services or for one.
Exit code 0: nothing changed, or the holder of --key changed it. Exit code 1: look at what happened.

  omi pin check --app-id org.example.dev --service-id cms --key cms.pem

The key before signs each rotation. So if the current key is yours, all rotations since your last
binding or Master Reset are yours, too, and the pin follows them.`
}

// Run checks pins.
func (c *pinCheckCmd) Run() error {
	file, pins, err := c.pins()
	if err != nil {
		return err
	}
	mine, err := c.ownKeys()
	if err != nil {
		return err
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		var findings []finding
		var unchecked error
		for _, p := range pins {
			f, err := checkPin(ctx, s, p, mine)
			if err != nil {
				f.State, f.Detail = pinUnchecked, process.Plain(err).Error()
				unchecked = cmp.Or(unchecked, fmt.Errorf("check %s: %w", p.target(), err))
			}
			if f.State == pinMoved {
				next := p
				next.Sequence, next.PublicKey, next.PinnedAt = f.Sequence, f.publicKey, time.Now().Unix()
				if err := file.set(p, next); err != nil {
					return err
				}
			}
			findings = append(findings, f)
		}
		if err := c.print(findings); err != nil {
			return err
		}
		if n := count(findings, finding.alarms); n > 0 {
			return process.Refused(fmt.Errorf("look at %d of %d pinned services", n, len(findings)))
		}
		return unchecked
	})
}

// pins returns the pins to check.
func (c *pinCheckCmd) pins() (pinFile, []pin, error) {
	t, named, err := c.Target()
	if err != nil {
		return pinFile{}, nil, err
	}
	file, pins, err := c.load()
	if err != nil {
		return file, nil, err
	}
	if !named {
		if len(pins) == 0 {
			err = process.Usagef("nothing is pinned in %s: begin with omi pin add", file.path)
		}
		return file, pins, err
	}
	i := indexOf(pins, t)
	if i < 0 {
		return file, nil, process.Usagef("%s %w in %s: begin with omi pin add", t, errNotPinned, file.path)
	}
	return file, pins[i : i+1], nil
}

// ownKeys returns the keys that the owner holds. After a crash or a refusal, a key's file has keys
// next to it that the registry may have committed nevertheless. A key names one service for ever,
// so it can't be mistaken for another's.
func (c *pinCheckCmd) ownKeys() ([]events.PublicKey, error) {
	var keys []events.PublicKey
	for _, path := range c.Key {
		for _, file := range []string{client.KeyFile(path), client.PendingFile(path)} {
			key, err := keyfile.Read(file)
			if errors.Is(err, keyfile.ErrMissing) && file != client.KeyFile(path) {
				continue
			}
			if err != nil {
				return nil, process.Usagef("--key: %w", err)
			}
			keys = append(keys, key.Public())
		}
	}
	return keys, nil
}

// print shows the findings.
func (c *pinCheckCmd) print(findings []finding) error {
	if c.JSON {
		return process.PrintJSON(struct {
			Pins []finding `json:"pins"`
			OK   bool      `json:"ok"`
		}{findings, count(findings, finding.ok) == len(findings)})
	}
	var text strings.Builder
	for _, f := range findings {
		end := ""
		if len(f.Changes) > 0 {
			end = ":"
		}
		printable.Fprintf(&text, "%s: %s: %s%s\n", f.target(), f.State, f.Detail, end)
		for _, e := range f.Changes {
			key := "(all keys ended)"
			if !e.PublicKey.IsZero() {
				key = e.PublicKey.String()
			}
			printable.Fprintf(&text, "  sequence %d  %s  %s  %s\n", e.Sequence, e.Event, printable.Date(e.Timestamp), key)
		}
		for _, line := range f.Fix {
			printable.Fprintf(&text, "  %s\n", line)
		}
	}
	return process.Print("%s", &text)
}

func count(findings []finding, which func(finding) bool) (n int) {
	for _, f := range findings {
		if which(f) {
			n++
		}
	}
	return n
}
