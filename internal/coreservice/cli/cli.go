// Package cli is the command line of the programs that run a core service: flags for a kong
// grammar, and the commands behind them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/completion"
	"omiappreg.org/keyrotation/internal/coreservice"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/streams"
)

// Shared is the grammar of a core service whose processes share one durable. The program sets the
// kong variables durable, durable_help, database_url and http_addr, and binds the database's owner
// and an [Open].
type Shared struct {
	Serve serve `cmd:"" default:"withargs" help:"Apply events and answer (the default)."`
	others
}

// Instances is the grammar of a core service whose processes each hear every event. The program
// also sets the kong variable forget_after.
type Instances struct {
	Serve serveInstance `cmd:"" default:"withargs" help:"Apply events and answer (the default)."`
	others
}

// others are the commands that both have.
type others struct {
	SetAside listSetAside `cmd:"" help:"List the messages that were not applied, and why."`
	Restore  restore      `cmd:"" help:"Restore this process's SQLite database from a copy."`

	Completion completion.Command `cmd:"" help:"Print a completion script for bash, zsh or fish."`
}

// Service is the service that such a process runs.
type Service interface {
	Run(ctx context.Context) error
	// Checks returns the checks for GET /readyz.
	Checks() iter.Seq2[string, func(context.Context) error]
	// Remarks returns lines for a person.
	Remarks() string
	// SetTrust changes whom it believes, soon after the call.
	SetTrust(trust events.Trust)
	Close() error
	Routes() map[string]http.Handler
}

// Open creates the service. If its database is not up yet, it waits until ctx ends.
type Open func(ctx context.Context, cfg Config) (Service, error)

// Config holds the settings of the command line and the environment.
type Config struct {
	JetStream   jetstream.JetStream
	DatabaseURL string
	Durable     string
	Instance    string        // of [Instances] only
	ForgetAfter time.Duration // of [Instances] only
	Trust       events.Trust
	Metrics     prometheus.Registerer
	Log         *slog.Logger
}

type database struct {
	URL string `name:"database-url" env:"OMI_DATABASE_URL" default:"${database_url}" placeholder:"URL" help:"This process's database: sqlite:PATH or postgres://… (${default})."`
}

type serve struct {
	NATS     process.NATS  `embed:""`
	Trust    process.Trust `embed:""`
	Database database      `embed:""`
	Web      process.Web   `embed:""`
	Durable  string        `env:"OMI_DURABLE" default:"${durable}" help:"${durable_help}"`
	LogLevel slog.Level    `env:"OMI_LOG_LEVEL" default:"info" help:"debug, info, warn or error (${default})."`
}

// Run serves until a signal comes.
func (c *serve) Run(open Open) error { return c.run(open, instance{}) }

// instance holds the additional settings of a process of [Instances].
type instance struct {
	Instance    string        `env:"OMI_INSTANCE" placeholder:"NAME" help:"Unique name of this process; its durable is DURABLE-NAME (the host's name)."`
	ForgetAfter time.Duration `name:"forget-after" env:"OMI_FORGET_AFTER" default:"${forget_after}" placeholder:"DURATION" help:"How long the broker keeps the durable without this process (${default})."`
}

type serveInstance struct {
	serve    `embed:""`
	instance `embed:""`
}

// Run serves until a signal comes.
func (c *serveInstance) Run(open Open) error {
	if c.Instance == "" {
		name, err := coreservice.HostInstance()
		if err != nil {
			return fmt.Errorf("--instance: %w", err)
		}
		c.Instance = name
	}
	if err := coreservice.CheckInstance(c.Instance); err != nil {
		return process.Usagef("--instance: %w", err)
	}
	if c.ForgetAfter <= 0 {
		return process.Usagef("--forget-after: want a time above zero, such as 10m, not %v", c.ForgetAfter)
	}
	return c.run(open, c.instance)
}

func (c *serve) run(open Open, one instance) error {
	log := process.NewLog(os.Stderr, c.LogLevel)
	trust, err := c.Trust.Load()
	if err != nil {
		return err
	}
	if strings.ContainsAny(c.Durable, " \t\r\n.*>/\\") || c.Durable == "" {
		return process.Usagef("--durable: the name of a durable has no blanks and none of . * > / \\, as in %s-2", streams.AuthDurable)
	}
	if err := errors.Join(c.NATS.Check(), process.CheckDatabase(c.Database.URL)); err != nil {
		return err
	}
	web, err := c.Web.Listen(log)
	if err != nil {
		return err
	}
	return process.Run(log, web.Run, func(ctx context.Context) error { return c.serve(ctx, log, trust, web, one, open) })
}

func (c *serve) serve(
	ctx context.Context, log *slog.Logger, trust events.Trust, web *process.HTTP, one instance, open Open,
) error {
	nc, err := c.NATS.Connect("omi-"+c.Durable, log)
	if err != nil {
		return err
	}
	defer process.Close(nc, log)
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	service, err := process.OpenDatabase(func() (Service, error) {
		return open(ctx, Config{
			JetStream: js, DatabaseURL: c.Database.URL, Durable: c.Durable, Instance: one.Instance, ForgetAfter: one.ForgetAfter,
			Trust: trust, Metrics: web.Metrics, Log: log,
		})
	})
	if err != nil {
		return err
	}
	defer func() {
		if err := service.Close(); err != nil {
			log.Warn("close the database", "error", err)
		}
	}()
	web.Remarks = service.Remarks
	web.Ready(health.Parts(service.Checks()), service.Routes())
	web.Announce()
	go c.Trust.Follow(ctx, log, trust, service.SetTrust)
	err = service.Run(ctx)
	if errors.Is(err, subscriber.ErrInUse) || errors.Is(err, subscriber.ErrDurable) {
		return process.Usage(err)
	}
	return err
}

type listSetAside struct {
	Database database `embed:""`
	Limit    int      `default:"50" help:"How many to list, the newest first (${default})."`
	JSON     bool     `help:"Print a JSON array, payloads in base64."`
}

// Help returns the text that --help shows in addition to the flags.
func (listSetAside) Help() string {
	return `A message is not applied if no trusted key signed it, if its subject names another service, if this version can't read
it, or if it can't be handled. The newest 1,000 of each of three kinds are kept.`
}

// Run lists the messages that were set aside.
func (c *listSetAside) Run(owner sqldb.Owner) error {
	if c.Limit < 1 {
		return process.Usagef("--limit: want 1 or more")
	}
	log := process.NewLog(os.Stderr, slog.LevelWarn)
	return process.Run(log, func(ctx context.Context) error {
		store, err := process.OpenExisting(ctx, c.Database.URL, func(ctx context.Context) (*storage.Store, error) {
			return storage.OpenExisting(ctx, c.Database.URL, owner, log)
		})
		if err != nil {
			return err
		}
		defer func() { _ = store.Close() }() // it only read
		list, err := store.ListSetAside(ctx, c.Limit)
		if err != nil {
			return err
		}
		return printSetAside(list, c.JSON)
	})
}

func printSetAside(list []storage.SetAside, asJSON bool) error {
	if asJSON {
		return process.PrintJSON(list)
	}
	var text strings.Builder
	for _, m := range list {
		printable.Fprintf(&text, "%s  stream sequence %d  %s\n    %s: %s\n", time.Unix(m.At, 0).Format(time.DateTime), m.StreamSequence, m.Subject, m.Reason, m.Detail)
	}
	return process.Print("%s%d messages were set aside.\n", &text, len(list))
}

type restore struct {
	process.Restore `embed:""`
	Database        database `embed:""`
}

// Run restores the database of the process.
func (c *restore) Run(owner sqldb.Owner) error { return c.Restore.Run(c.Database.URL, owner) }
