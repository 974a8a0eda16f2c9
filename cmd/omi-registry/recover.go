package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry"
)

// connectWithin is how long a command that a person waits for tries to reach the broker.
const connectWithin = 10 * time.Second

type recoverCmd struct {
	process.NATS `embed:""`
	Database     database `embed:""`
	SigningKey   string   `name:"signing-key" env:"OMI_SIGNING_KEY" required:"" placeholder:"FILE" help:"The registry's private key."`
	Origin       string   `env:"OMI_ORIGIN" default:"omiappreg.org" help:"The registry's domain name (${default})."`
	Trust        []string `env:"OMI_TRUST" placeholder:"ed25519:…" help:"Earlier public keys of this registry; KEY@TIME for one that was stolen."`
	TrustFile    string   `name:"trust-file" env:"OMI_TRUST_FILE" placeholder:"FILE" help:"A file with such keys, one on each line."`
	DryRun       bool     `name:"dry-run" help:"Show what would be recovered, and which keys signed it; write nothing."`
	Yes          bool     `help:"Also write changes that only earlier keys have signed."`
	JSON         bool     `help:"Print one JSON object."`
}

// Help is shown by --help.
func (c *recoverCmd) Help() string {
	return `After the registry's database was restored from a backup, the streams know of changes that
the database lacks. The registry notices, puts the services concerned on hold, and serves the
others. This command brings the changes back: from the signed events in OMI_INVALIDATIONS, which
keeps the last 64 of each service for ever, and from the receipts in OMI_RECEIPTS, which are kept
for 7 days. Lost receipts get a stand-in, signed with --signing-key. The command may run while
registries run, which then serve the services again, and it can be repeated.

Before it writes, it shows which keys have signed the changes. Changes that an earlier key of the
registry has signed are written only with --yes: look at them first, because a thief of such a key
can sign events, too. If a key was stolen, give it an end, as in --trust
ed25519:…@2026-12-01T10:00:00Z: events that the stream stored since then are skipped.

A change that was committed and never published can't be recovered if the outbox was lost with the
database. No other party has heard of it: its service keeps the key that it had, or needs a Master
Reset.

Exit code 1 says that something remains to be done.`
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
		log := process.NewLog(os.Stderr, slog.LevelInfo) // long work reports its progress
		js, done, err := openStreams(ctx, c.NATS, log)
		if err != nil {
			return err
		}
		defer done()
		return c.recover(ctx, store, registry.Recovery{JetStream: js, Trust: trust, Key: key, DryRun: true, Log: log})
	})
}

// recover says which keys have signed the changes. Then it writes exactly those changes, and none
// that came since.
func (c *recoverCmd) recover(ctx context.Context, store *registry.Store, how registry.Recovery) error {
	report, err := store.Admin().Recover(ctx, how)
	if err == nil && !c.JSON {
		err = process.Print("%s", signersText(&report))
	}
	if err != nil {
		return err
	}
	refused := c.mayWrite(&report)
	// With 0, the stream was empty, and what came since was not shown.
	if !c.DryRun && refused == nil && report.UpTo > 0 {
		how.DryRun, how.UpTo = false, report.UpTo
		if report, err = store.Admin().Recover(ctx, how); err != nil {
			return err
		}
	}
	if c.JSON {
		err = process.PrintJSON(report)
	} else {
		err = process.Print("%s", recoveredText(&report))
	}
	if err = cmp.Or(err, refused); err == nil && !report.Complete() {
		err = process.Refused(errors.New("not everything could be recovered: the report names what remains"))
	}
	return err
}

// mayWrite refuses to write changes that only an earlier key has signed, unless --yes agrees to it.
func (c *recoverCmd) mayWrite(r *registry.Recovered) error {
	if c.Yes || c.DryRun || r.Earlier() == 0 {
		return nil
	}
	return process.Usagef("nothing is written: only earlier keys have signed %d changes. If such a key was stolen, give it an end, "+
		"as in --trust KEY@TIME; if not, --yes recovers them", r.Earlier())
}

// signersText says which keys have signed the changes, and lists those of earlier keys.
func signersText(r *registry.Recovered) printable.Composed {
	var text strings.Builder
	for _, s := range r.Signers {
		if !s.Earlier {
			printable.Fprintf(&text, "%d changes are signed by %s, the registry's current key.\n", s.Changes, s.PublicKey)
			continue
		}
		printable.Fprintf(&text, "%d changes are signed by %s, an earlier key:\n", s.Changes, s.PublicKey)
		if more := s.Changes - len(s.Newest); more > 0 {
			printable.Fprintf(&text, "  the first %d are not listed\n", more)
		}
		for _, change := range s.Newest {
			printable.Fprintf(&text, "  %s  %s, sequence %d, at %d in the stream since %s\n",
				change.Target, change.Event, change.Sequence, change.Place, change.StoredAt.Format(time.RFC3339))
		}
	}
	return printable.Composed(text.String())
}

func recoveredText(r *registry.Recovered) printable.Composed {
	var text strings.Builder
	for _, g := range r.Gaps {
		printable.Fprintf(&text, "%s: the database ends at sequence %d, and the stream has only %d to %d. Restore a newer backup, one that has sequence %d, and recover again.\n",
			g.Target, g.Has, g.Next, g.Last, g.Next-1)
	}
	for _, c := range r.Conflicts {
		printable.Fprintf(&text, "%s: sequence %d can't be recovered: %s.\n", c.Target, c.Sequence, c.What)
	}
	for _, c := range r.IssuedTwice {
		printable.Fprintf(&text, "%s: sequence %d was issued twice: %s.\n", c.Target, c.Sequence, c.What)
	}
	for _, app := range r.UnknownApps {
		printable.Fprintf(&text, "%s: the database does not know this app: `omi-registry app add --app-id %s --master-key …` lets its developer bind services again.\n", app, app)
	}
	if r.Refused > 0 {
		printable.Fprintf(&text, "%d messages of the stream are signed by no key of this registry; name earlier keys with --trust.\n", r.Refused)
	}
	if r.AfterEnd > 0 {
		printable.Fprintf(&text, "%d messages of the stream are signed by an earlier key after its end, and skipped.\n", r.AfterEnd)
	}
	verb := "Recovered"
	if r.DryRun {
		verb = "Would recover"
	}
	printable.Fprintf(&text, "%s %d changes of %d services, from %d messages", verb, r.Changes, r.Services, r.Messages)
	if r.WithoutReceipt > 0 {
		printable.Fprintf(&text, "; %d of them have a stand-in for a lost receipt", r.WithoutReceipt)
	}
	text.WriteString(".\n")
	if r.Changes > 0 {
		text.WriteString("Changes that were committed and never published are not among them: no other party has heard of them.\n")
	}
	return printable.Composed(text.String())
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

type restoreCmd struct {
	process.Restore `embed:""`
	Database        database `embed:""`
}

// Help is shown by --help.
func (c *restoreCmd) Help() string {
	return c.Restore.Help() + `

The registry notices at its next start what the copy lacks: see omi-registry recover --help.`
}

// Run restores the registry's database.
func (c *restoreCmd) Run() error { return c.Restore.Run(c.Database.URL, sqldb.Registry) }
