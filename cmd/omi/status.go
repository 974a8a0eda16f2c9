package main

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
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
			return c.watch(ctx, s, t, &statusView{w: os.Stdout, terminal: drawable(), json: c.JSON})
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
		return process.Print("%s", recordText(record))
	})
}

// drawable reports whether the standard output is a terminal that can be drawn on.
func drawable() bool { return isatty.IsTerminal(os.Stdout.Fd()) && os.Getenv("TERM") != "dumb" }

func recordText(r events.ServiceRecord) printable.Composed {
	var w strings.Builder
	printable.Fprintf(&w, "%s.%s: %s, sequence %d, bound since %s\n", r.AppID, r.ServiceID, r.Status, r.Sequence, printable.Date(r.BoundAt))
	if !r.Current.PublicKey.IsZero() {
		printable.Fprintf(&w, "  current    %s  since %s\n", r.Current.PublicKey, printable.Date(r.Current.Since))
	}
	for _, key := range r.Grace {
		// The registry's clock counts, because it ends keys.
		left := time.Duration(key.Expires-r.Timestamp) * time.Second
		printable.Fprintf(&w, "  in grace   %s  %s left, until %s\n", key.PublicKey, left, printable.Date(key.Expires))
	}
	width := len("in grace  ")
	for durable := range r.Propagation {
		width = max(width, len(durable))
	}
	heard(&w, width, r.Propagation, "")
	heard(&w, width, r.OtherDurables, "; changes don't wait for it")
	if r.NextRotationAt > r.Timestamp {
		printable.Fprintf(&w, "  rotation   refused (rate_limited) until %s: its rotations for this minute are used up\n", printable.Date(r.NextRotationAt))
	}
	for _, line := range [][2]string{{"type", r.ServiceType}, {"endpoint", r.EndpointURL}} {
		if line[1] != "" {
			printable.Fprintf(&w, "  %-10s %s\n", line[0], line[1])
		}
	}
	return printable.Composed(w.String())
}

// heard lists which durables have applied the last change.
func heard(w *strings.Builder, width int, durables map[string]bool, note string) {
	for _, durable := range slices.Sorted(maps.Keys(durables)) {
		has := "has not applied the last change yet"
		if durables[durable] {
			has = "has applied the last change"
		}
		printable.Fprintf(w, "  %-*s %s%s\n", width, durable, has, note)
	}
}
