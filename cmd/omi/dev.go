package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/gofrs/flock"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/stack"
	"omiappreg.org/keyrotation/registry"
)

// devApp is the app that `omi dev` adds with a Master Key of its own, so that there is something to
// bind.
const devApp = "org.example.dev"

const masterKeyFile = "master.pem"

type devCmd struct {
	Data        string        `env:"OMI_DATA" default:"./omi-data" placeholder:"DIR" help:"Where keys, databases and streams are kept (${default})."`
	NATSAddr    string        `name:"nats-addr" env:"OMI_NATS_ADDR" default:"127.0.0.1:4222" placeholder:"HOST:PORT" help:"Where the broker listens (${default})."`
	HTTPAddr    string        `name:"http-addr" env:"OMI_HTTP_ADDR" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Where lookups, verify, attribute, /metrics and /readyz are served (${default})."`
	GracePeriod time.Duration `env:"OMI_GRACE_PERIOD" default:"300s" help:"How long an old key stays valid (${default})."`
	Origin      string        `env:"OMI_ORIGIN" default:"omiappreg.org" help:"The registry's domain name (${default})."`
	Apps        string        `env:"OMI_APPS" placeholder:"FILE" help:"Apps to add: a JSON array of {\"app_id\": …, \"master_public_key\": …}."`
	LogLevel    slog.Level    `env:"OMI_LOG_LEVEL" default:"info" help:"debug, info, warn or error (${default})."`
	JSON        bool          `help:"Print one JSON object once everything serves: where it is, and what to try."`
}

// Help is shown by --help.
func (*devCmd) Help() string {
	return `Runs until Ctrl-C, and the next start continues with the same state. The app org.example.dev
is known from the start; its Master Key is in the folder of --data. Port 0 is a free port.

  omi dev
  omi dev --data /tmp/omi --nats-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --json`
}

// Run runs the stack until a signal comes.
func (c *devCmd) Run() error {
	log := process.NewLog(os.Stderr, c.LogLevel)
	if c.GracePeriod <= 0 {
		return process.Usagef("--grace-period is 1s or more; a request asks for less with its own grace_period")
	}
	policy, err := registry.Policy{Origin: c.Origin, GracePeriod: c.GracePeriod}.WithDefaults()
	if err != nil {
		return process.Usage(err)
	}
	apps, err := registry.ReadApps(c.Apps)
	if err != nil {
		return process.Usagef("--apps: %w", err)
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return process.Usagef("--data: %w", err)
	}
	lock := flock.New(filepath.Join(c.Data, "lock"), flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if err != nil {
		return process.Usagef("--data: %w", err)
	}
	if !locked {
		return process.Usagef("--data: another omi dev uses %s: stop that one, or name another folder", c.Data)
	}
	defer func() { _ = lock.Unlock() }() // the process ends with it
	app, err := c.ownApp()
	if err != nil {
		return err
	}
	web, err := process.Listen(c.HTTPAddr, log)
	if err != nil {
		return err
	}
	s, err := stack.Open(context.Background(), stack.Config{
		Folder: c.Data, NATSAddr: c.NATSAddr, Policy: policy, Apps: append(apps, app), Metrics: web.Metrics, Log: log,
	})
	if err != nil {
		return err
	}
	defer s.Close()
	web.Ready(s.Parts(), s.Registry.Lookup.Routes(), s.Auth.Routes(), s.Billing.Routes())
	return process.Run(log, append(s.Actors(), web.Run, func(ctx context.Context) error {
		if s.AwaitHealthy(ctx) == nil {
			if err := c.print(c.greeting(s, web)); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return nil
	})...)
}

func (c *devCmd) ownApp() (registry.App, error) {
	master, err := stack.ReadOrCreate(c.Data, masterKeyFile, stack.RegistryKeyFile)
	if err != nil {
		return registry.App{}, err
	}
	id, err := events.ParseAppID(devApp)
	return registry.App{AppID: id, MasterPublicKey: master.Public()}, err
}

func (c *devCmd) masterFile() string { return filepath.Join(c.Data, masterKeyFile) }

// greeting says where everything is, and what to try.
type greeting struct {
	NATSURL           string           `json:"nats_url"`
	HTTPURL           string           `json:"http_url"`
	RegistryPublicKey events.PublicKey `json:"registry_public_key"`
	Origin            string           `json:"origin"`
	Data              string           `json:"data"`
	AppID             string           `json:"app_id"`     // the app that is known
	MasterKey         string           `json:"master_key"` // the file of its Master Key
	TryNext           []string         `json:"try_next"`   // shell commands
}

func (c *devCmd) greeting(s *stack.Stack, web *process.HTTP) greeting {
	omi, where := invocation(), ""
	if url := s.Broker.URL(); url != "nats://127.0.0.1:4222" {
		where = " --nats-url " + url
	}
	service := fmt.Sprintf("--app-id %s --service-id cms%s", devApp, where)
	key := quote(filepath.Join(c.Data, "cms.pem"))
	return greeting{
		NATSURL: s.Broker.URL(), HTTPURL: "http://" + web.Addr(), RegistryPublicKey: s.Key.Public(), Origin: c.Origin, Data: c.Data,
		AppID: devApp, MasterKey: c.masterFile(),
		TryNext: []string{
			fmt.Sprintf("%s bind %s --master-key %s --key %s", omi, service, quote(c.masterFile()), key),
			fmt.Sprintf("%s rotate %s --key %s --wait propagated", omi, service, key),
			fmt.Sprintf("%s status %s", omi, service),
		},
	}
}

func (c *devCmd) print(g greeting) error {
	if c.JSON {
		return process.PrintJSON(g)
	}
	return process.Print(`NATS       %s
HTTP       %s   (/v1/registry, /v1/verify, /v1/attribute, /metrics, /readyz)
Registry   %s
State      %s

Try next, in another terminal:
  %s

Ctrl-C stops everything; the state is there when you start again.
`, g.NATSURL, g.HTTPURL, g.RegistryPublicKey, g.Data, printable.Composed(strings.Join(g.TryNext, "\n  ")))
}

// quote quotes a word for the shell, if it needs quotes.
func quote(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+:@%,=", r)
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// invocation returns the command line that started this program.
func invocation() string {
	if strings.Contains(os.Args[0], "go-build") {
		return "go run ./cmd/omi"
	}
	return quote(os.Args[0])
}
