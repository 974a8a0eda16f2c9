package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/registry"
)

// connectWithin is how long a command that a person waits for tries to reach the broker.
const connectWithin = 10 * time.Second

type recoverCmd struct {
	process.NATS `embed:""`
	Database     database `embed:""`
	SigningKey   string   `name:"signing-key" env:"OMI_SIGNING_KEY" required:"" placeholder:"FILE" help:"The registry's private key: what it signed is believed, and receipts that are gone get a stand-in that it signs."`
	Origin       string   `env:"OMI_ORIGIN" default:"omiappreg.org" help:"The registry's domain name (${default})."`
	Trust        []string `env:"OMI_TRUST" placeholder:"ed25519:…" help:"Earlier public keys of this registry, if its signing key was changed."`
	TrustFile    string   `name:"trust-file" env:"OMI_TRUST_FILE" placeholder:"FILE" help:"A file with those keys, one a line."`
	DryRun       bool     `name:"dry-run" help:"Say what would be recovered, and write nothing."`
	JSON         bool     `help:"Print one JSON object."`
}

// Help is what --help says beside the flags.
func (c *recoverCmd) Help() string {
	return `After the registry's database was restored from a backup, the streams know of changes that it does not. The registry
notices, holds the services concerned, and serves the others. This command brings the changes back: from the signed events
in OMI_INVALIDATIONS, which keeps the last 64 of each service for ever, and the receipts in OMI_RECEIPTS, which are kept
for 7 days. It may run beside registries, which then serve the services again, and as often as one likes.

A change that was committed and never published, since the outbox was lost with the database, can't be recovered: nobody
has heard of it, and its service goes on with the key that it had, or needs a Master Reset.`
}

// Run recovers.
func (c *recoverCmd) Run() error {
	key, err := signingKey(c.SigningKey)
	if err != nil {
		return err
	}
	trust, err := ownTrust(c.Origin, key, c.Trust, c.TrustFile)
	if err != nil {
		return err
	}
	if err := c.Check(); err != nil {
		return err
	}
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		log := process.NewLog(os.Stderr, slog.LevelInfo) // long work says how far it is
		js, done, err := openStreams(ctx, c.NATS, log)
		if err != nil {
			return err
		}
		defer done()
		report, err := store.Recover(ctx, registry.Recovery{JetStream: js, Trust: trust, Key: key, DryRun: c.DryRun, Log: log})
		if err != nil {
			return err
		}
		if c.JSON {
			err = process.PrintJSON(report)
		} else {
			err = process.Print("%s", recoveredText(&report))
		}
		if err == nil && !report.Complete() {
			err = process.Refused(errors.New("not everything could be recovered: the report names what remains"))
		}
		return err
	})
}

func recoveredText(r *registry.Recovered) string {
	var text strings.Builder
	for _, g := range r.Gaps {
		fmt.Fprintf(&text, "%s: the database ends at sequence %d, and the stream has only %d to %d. Restore a newer backup, one that has sequence %d, and recover again.\n",
			g.Target, g.Has, g.Next, g.Last, g.Next-1)
	}
	for _, c := range r.Conflicts {
		fmt.Fprintf(&text, "%s: sequence %d can't be recovered: %s.\n", c.Target, c.Sequence, c.What)
	}
	for _, c := range r.IssuedTwice {
		fmt.Fprintf(&text, "%s: sequence %d was issued twice: %s.\n", c.Target, c.Sequence, c.What)
	}
	for _, app := range r.UnknownApps {
		fmt.Fprintf(&text, "%s: the database does not know this app: `omi-registry app add --app-id %s --master-key …` lets its developer bind services again.\n", app, app)
	}
	if r.Refused > 0 {
		fmt.Fprintf(&text, "%d messages of the stream are signed by no key of this registry; name earlier keys by --trust.\n", r.Refused)
	}
	verb := "Recovered"
	if r.DryRun {
		verb = "Would recover"
	}
	fmt.Fprintf(&text, "%s %d changes of %d services, from %d messages", verb, r.Changes, r.Services, r.Messages)
	if r.WithoutReceipt > 0 {
		fmt.Fprintf(&text, "; %d of them without their receipt, which has a stand-in", r.WithoutReceipt)
	}
	text.WriteString(".\n")
	if r.Changes > 0 {
		text.WriteString("What was committed and never published is not among them: nobody has heard of it.\n")
	}
	return text.String()
}

// openStreams connects to the broker now.
func openStreams(ctx context.Context, n process.NATS, log *slog.Logger) (jetstream.JetStream, func(), error) {
	if err := n.Check(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	nc, err := n.ConnectNow(ctx, "omi-registry", log)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("use JetStream: %w", err)
	}
	return js, nc.Close, nil
}
