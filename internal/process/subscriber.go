package process

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
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/streams"
)

// Subscriber is the grammar of a core service's command line. The program sets the kong variables
// durable, database_url and http_addr, which are its defaults.
type Subscriber struct {
	Serve    serveSubscriber   `cmd:"" default:"withargs" help:"Apply events and answer (the default)."`
	SetAside listSetAside      `cmd:"" help:"List the messages that were not applied, and why."`
	Restore  restoreSubscriber `cmd:"" help:"Restore this process's SQLite database from a copy."`

	Completion completion.Command `cmd:"" help:"Print a completion script for bash, zsh or fish."`
}

// Instances is a [Subscriber] for a core service whose processes each hear every event. The program
// also sets the kong variable forget_after.
type Instances struct {
	Serve    serveInstance     `cmd:"" default:"withargs" help:"Apply events and answer (the default)."`
	SetAside listSetAside      `cmd:"" help:"List the messages that were not applied, and why."`
	Restore  restoreSubscriber `cmd:"" help:"Restore this process's SQLite database from a copy."`

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

// OpenService creates the service. If its database is not up yet, it waits until ctx ends.
type OpenService func(ctx context.Context, cfg SubscriberConfig) (Service, error)

// SubscriberConfig holds the settings of the command line and the environment.
type SubscriberConfig struct {
	JetStream   jetstream.JetStream
	DatabaseURL string
	Durable     string
	Instance    string        // of [Instances] only
	ForgetAfter time.Duration // of [Instances] only
	Trust       events.Trust
	Metrics     prometheus.Registerer
	Log         *slog.Logger
}

type subscriberDatabase struct {
	URL string `name:"database-url" env:"OMI_DATABASE_URL" default:"${database_url}" placeholder:"URL" help:"This process's database: sqlite:PATH or postgres://… (${default})."`
}

type serveSubscriber struct {
	NATS     NATS               `embed:""`
	Trust    Trust              `embed:""`
	Database subscriberDatabase `embed:""`
	Web      Web                `embed:""`
	Durable  string             `env:"OMI_DURABLE" default:"${durable}" help:"${durable_help}"`
	LogLevel slog.Level         `env:"OMI_LOG_LEVEL" default:"info" help:"debug, info, warn or error (${default})."`
}

// Run serves until a signal comes.
func (c *serveSubscriber) Run(open OpenService) error { return c.run(open, instance{}) }

// instance holds the additional settings of a process of [Instances].
type instance struct {
	Instance    string        `env:"OMI_INSTANCE" placeholder:"NAME" help:"Unique name of this process; its durable is DURABLE-NAME (the host's name)."`
	ForgetAfter time.Duration `name:"forget-after" env:"OMI_FORGET_AFTER" default:"${forget_after}" placeholder:"DURATION" help:"How long the broker keeps the durable without this process (${default})."`
}

type serveInstance struct {
	serveSubscriber `embed:""`
	instance        `embed:""`
}

// Run serves until a signal comes.
func (c *serveInstance) Run(open OpenService) error {
	if c.Instance == "" {
		name, err := subscriber.HostInstance()
		if err != nil {
			return fmt.Errorf("--instance: %w", err)
		}
		c.Instance = name
	}
	if err := subscriber.CheckInstance(c.Instance); err != nil {
		return Usagef("--instance: %w", err)
	}
	if c.ForgetAfter <= 0 {
		return Usagef("--forget-after: want a time above zero, such as 10m, not %v", c.ForgetAfter)
	}
	return c.run(open, c.instance)
}

func (c *serveSubscriber) run(open OpenService, one instance) error {
	log := NewLog(os.Stderr, c.LogLevel)
	trust, err := c.Trust.Load()
	if err != nil {
		return err
	}
	if err := CheckDurable(c.Durable); err != nil {
		return err
	}
	if err := errors.Join(c.NATS.Check(), CheckDatabase(c.Database.URL)); err != nil {
		return err
	}
	web, err := c.Web.Listen(log)
	if err != nil {
		return err
	}
	return Run(log, web.Run, func(ctx context.Context) error { return c.serve(ctx, log, trust, web, one, open) })
}

func (c *serveSubscriber) serve(
	ctx context.Context, log *slog.Logger, trust events.Trust, web *HTTP, one instance, open OpenService,
) error {
	nc, err := c.NATS.Connect("omi-"+c.Durable, log)
	if err != nil {
		return err
	}
	defer Close(nc, log)
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	service, err := OpenDatabase(func() (Service, error) {
		return open(ctx, SubscriberConfig{
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
		return Usage(err)
	}
	return err
}

// CheckDurable refuses a text that can't be the name of a durable.
func CheckDurable(name string) error {
	if strings.ContainsAny(name, " \t\r\n.*>/\\") || name == "" {
		return Usagef("--durable: the name of a durable has no blanks and none of . * > / \\, as in %s-2", streams.AuthDurable)
	}
	return nil
}

type listSetAside struct {
	Database subscriberDatabase `embed:""`
	Limit    int                `default:"50" help:"How many to list, the newest first (${default})."`
	JSON     bool               `help:"Print a JSON array, payloads in base64."`
}

// Help returns the text that --help shows in addition to the flags.
func (listSetAside) Help() string {
	return `A message is not applied if no trusted key signed it, if its subject names another service, if this version can't read
it, or if it can't be handled. The newest 1,000 of each of three kinds are kept.`
}

// Run lists the messages that were set aside.
func (c *listSetAside) Run(owner sqldb.Owner) error {
	if c.Limit < 1 {
		return Usagef("--limit: want 1 or more")
	}
	log := NewLog(os.Stderr, slog.LevelWarn)
	return Run(log, func(ctx context.Context) error {
		store, err := OpenExisting(ctx, c.Database.URL, func(ctx context.Context) (*storage.Store, error) {
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
		return PrintJSON(list)
	}
	var text strings.Builder
	for _, m := range list {
		printable.Fprintf(&text, "%s  stream sequence %d  %s\n    %s: %s\n", time.Unix(m.At, 0).Format(time.DateTime), m.StreamSequence, m.Subject, m.Reason, m.Detail)
	}
	return Print("%s%d messages were set aside.\n", &text, len(list))
}
