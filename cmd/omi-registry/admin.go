package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/registry"
)

type migrateCmd struct {
	Database database `embed:""`
}

// Run migrates: opening the store does.
func (c *migrateCmd) Run() error {
	return withStore(c.Database, func(context.Context, *registry.Store) error {
		return process.Print("The schema is up to date.\n")
	})
}

type appCmd struct {
	Add  appAddCmd  `cmd:"" help:"Add a developer's app."`
	List appListCmd `cmd:"" help:"List the apps."`
	Show appShowCmd `cmd:"" help:"Show an app with all Master Keys that it ever had."`

	ReplaceMaster appReplaceCmd `cmd:"" name:"replace-master" help:"Replace an app's Master Key that leaked or was lost."`
}

type appAddCmd struct {
	Database  database `embed:""`
	AppID     string   `name:"app-id" required:"" placeholder:"ID" help:"The app, for example org.omiappreg.alice.shop.7f8a9d."`
	MasterKey string   `name:"master-key" required:"" placeholder:"ed25519:…" help:"The public half of the developer's Master Key."`
	JSON      bool     `help:"Print one JSON object."`
}

// Run adds an app.
func (c *appAddCmd) Run() error {
	app, err := parseAppAndKey(c.AppID, c.MasterKey)
	if err != nil {
		return err
	}
	return withStore(c.Database, func(ctx context.Context, store *registry.Store) error {
		if err := store.Admin().AddApp(ctx, app, time.Now().Unix()); err != nil {
			return process.Usage(err)
		}
		if c.JSON {
			return process.PrintJSON(app)
		}
		return process.Print("The registry knows %s; its developer can bind services now.\n", app.AppID)
	})
}

// parseAppAndKey parses --app-id and --master-key.
func parseAppAndKey(id, master string) (app registry.App, err error) {
	if app.AppID, err = parseApp(id); err != nil {
		return app, err
	}
	if app.MasterPublicKey, err = events.ParsePublicKey(master); err != nil {
		return app, process.Usagef("--master-key: %w", err)
	}
	return app, nil
}

type appListCmd struct {
	Database database `embed:""`
	JSON     bool     `help:"Print a JSON array."`
}

// Run lists the apps.
func (c *appListCmd) Run() error {
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		apps, err := store.Admin().Apps(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return process.PrintJSON(apps)
		}
		var text strings.Builder
		for _, app := range apps {
			printable.Fprintf(&text, "%s\t%s\n", app.AppID, app.MasterPublicKey)
		}
		return process.Print("%s", &text)
	})
}

type appShowCmd struct {
	Database database `embed:""`
	AppID    string   `name:"app-id" required:"" placeholder:"ID" help:"The app."`
	JSON     bool     `help:"Print one JSON object."`
}

// Run shows one app.
func (c *appShowCmd) Run() error {
	id, err := parseApp(c.AppID)
	if err != nil {
		return err
	}
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		app, err := store.Admin().App(ctx, id)
		if err != nil {
			return unknownApp(err)
		}
		if c.JSON {
			return process.PrintJSON(app)
		}
		var text strings.Builder
		printable.Fprintf(&text, "%s, known since %s\n", id, date(app.AddedAt))
		for _, old := range app.Ended {
			printable.Fprintf(&text, "  %s  ended %s, and is never accepted again\n", old.PublicKey, date(old.EndedAt))
		}
		printable.Fprintf(&text, "  %s  the Master Key\n", app.MasterPublicKey)
		return process.Print("%s", &text)
	})
}

func date(seconds int64) string { return time.Unix(seconds, 0).Format(time.RFC3339) }

func unknownApp(err error) error {
	if errors.Is(err, registry.ErrUnknownApp) {
		err = process.Usage(fmt.Errorf("%w: `omi-registry app list` lists those that it knows", err))
	}
	return err
}

type appReplaceCmd struct {
	Database  database `embed:""`
	AppID     string   `name:"app-id" required:"" placeholder:"ID" help:"The app."`
	MasterKey string   `name:"master-key" required:"" placeholder:"ed25519:…" help:"The public half of the developer's new Master Key."`
	JSON      bool     `help:"Print one JSON object."`
}

// Help is shown by --help.
func (c *appReplaceCmd) Help() string {
	return `From then on, every registry on this database refuses what the old key signs, including
requests that wait in the stream. The old key can never be a Master Key or a service's key again.
Services keep their keys. If the old key leaked, the thief may have changed them: their developer
then resets each service with the new Master Key (omi reset).`
}

// Run replaces an app's Master Key.
func (c *appReplaceCmd) Run() error {
	next, err := parseAppAndKey(c.AppID, c.MasterKey)
	if err != nil {
		return err
	}
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		old, err := store.Admin().ReplaceMaster(ctx, next, time.Now().Unix())
		if err != nil {
			return unknownApp(usage(err))
		}
		app, err := store.Admin().App(ctx, next.AppID)
		if err != nil {
			return err
		}
		switch {
		case c.JSON:
			return process.PrintJSON(app)
		case old == next.MasterPublicKey:
			return process.Print("%s has this Master Key already.\n", next.AppID)
		}
		return process.Print("%s has a new Master Key; from now on, everything that %s signs is refused.\n"+
			"If the old key leaked, reset each service: omi reset --app-id %s --service-id … --master-key …\n", next.AppID, old, next.AppID)
	})
}

type checkCmd struct {
	process.NATS `embed:""`
	Database     database `embed:""`
	Stream       bool     `help:"Compare with the stream of events too; needs --trust and the broker."`
	Origin       string   `env:"OMI_ORIGIN" default:"omiappreg.org" help:"The registry's domain name (${default})."`
	Trust        []string `env:"OMI_TRUST" placeholder:"ed25519:…" help:"The registry's public keys, to verify the stored receipts' signatures too."`
	TrustFile    string   `env:"OMI_TRUST_FILE" placeholder:"FILE" help:"A file with such keys, one on each line."`
	JSON         bool     `help:"Print one JSON object."`
}

// Run verifies the stored invariants.
func (c *checkCmd) Run() error {
	var trust *events.Trust
	if len(c.Trust) > 0 || c.TrustFile != "" || c.Stream {
		t, err := process.Trust{Origin: c.Origin, Keys: c.Trust, File: c.TrustFile}.Load()
		if err != nil {
			return err
		}
		trust = &t
	}
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		report, err := c.check(ctx, store, trust)
		if err != nil {
			return err
		}
		if c.JSON {
			err = process.PrintJSON(report)
		} else {
			err = printReport(report)
		}
		if err == nil && len(report.Violations) > 0 {
			err = process.Refused(fmt.Errorf("%d violations", len(report.Violations)))
		}
		return err
	})
}

func (c *checkCmd) check(ctx context.Context, store *registry.Store, trust *events.Trust) (registry.Report, error) {
	if !c.Stream {
		return store.Admin().Check(ctx, trust, time.Now())
	}
	log := process.NewLog(os.Stderr, slog.LevelInfo)
	js, done, err := openStreams(ctx, c.NATS, log)
	if err != nil {
		return registry.Report{}, err
	}
	defer done()
	return store.Admin().CheckWithStream(ctx, js, *trust, time.Now(), log)
}

func printReport(r registry.Report) error {
	var text strings.Builder
	for _, v := range r.Violations {
		if v.Target != "" {
			printable.Fprintf(&text, "%s: ", v.Target)
		}
		printable.Fprintf(&text, "%s\n", v.What)
	}
	printable.Fprintf(&text, "Checked %d services with %d changes; %d of them wait in the outbox; %d violations.\n",
		r.Services, r.Changes, r.Outbox, len(r.Violations))
	if r.DeadLetters > 0 {
		printable.Fprintf(&text, "%d dead letters wait: see omi-registry deadletters list.\n", r.DeadLetters)
	}
	return process.Print("%s", &text)
}

// withExisting is withStore for a command that reads a registry's database: it must exist, and its
// schema is left as it is.
func withExisting(d database, do func(context.Context, *registry.Store) error) error {
	return with(d.openExisting, do)
}

// withStore opens the database for one command, and brings its schema up to date.
func withStore(d database, do func(context.Context, *registry.Store) error) error {
	return with(d.open, do)
}

// with runs one command. A signal ends it, and is an error unless the command is done.
func with(open func(context.Context, *slog.Logger) (*registry.Store, error), do func(context.Context, *registry.Store) error) error {
	log := process.NewLog(os.Stderr, slog.LevelWarn)
	done := false
	err := process.Run(log, func(ctx context.Context) error {
		store, err := open(ctx, log)
		if err != nil {
			return err
		}
		defer closeStore(store, log)
		err = do(ctx, store)
		done = err == nil
		return err
	})
	if err == nil && !done {
		err = process.Refused(errors.New("stopped before it was done"))
	}
	return err
}
