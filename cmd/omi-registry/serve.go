package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry"
)

// database is the flag of every command that opens the database.
type database struct {
	URL string `name:"database-url" env:"OMI_DATABASE_URL" default:"sqlite:omi-registry.db" placeholder:"URL" help:"sqlite:PATH, or postgres://… for PostgreSQL and CockroachDB (${default})."`
}

func (d database) open(ctx context.Context, log *slog.Logger) (*registry.Store, error) {
	return process.OpenDatabase(func() (*registry.Store, error) { return registry.OpenStore(ctx, d.URL, log) })
}

func (d database) openExisting(ctx context.Context, log *slog.Logger) (*registry.Store, error) {
	return process.OpenExisting(ctx, d.URL, func(ctx context.Context) (*registry.Store, error) {
		return registry.OpenExisting(ctx, d.URL, log)
	})
}

type serveCmd struct {
	process.NATS `embed:""`
	Database     database    `embed:""`
	Streams      streamFlags `embed:""`
	Web          process.Web `embed:""`

	SigningKey string   `name:"signing-key" env:"OMI_SIGNING_KEY" required:"" placeholder:"FILE" help:"The registry's private key, as omi-registry keygen makes it."`
	Trust      []string `env:"OMI_TRUST" placeholder:"ed25519:…" help:"Earlier public keys of this registry; KEY@TIME for one that was stolen."`
	TrustFile  string   `name:"trust-file" env:"OMI_TRUST_FILE" placeholder:"FILE" help:"A file with such keys, one on each line."`
	Origin     string   `env:"OMI_ORIGIN" default:"omiappreg.org" help:"The registry's domain name, which its messages carry (${default})."`
	Apps       string   `env:"OMI_APPS" placeholder:"FILE" help:"Apps to add: a JSON array of {\"app_id\": …, \"master_public_key\": …}."`

	GracePeriod    time.Duration  `env:"OMI_GRACE_PERIOD" default:"300s" help:"How long an old key stays valid (${default})."`
	MaxClockSkew   time.Duration  `env:"OMI_MAX_CLOCK_SKEW" default:"300s" help:"How far a request's timestamp may be off (${default})."`
	RequireProof   string         `env:"OMI_REQUIRE_PROOF" default:"own" placeholder:"WHICH" help:"Requests that must prove their new key: none, own or all (${default})."`
	ServicesPerApp int            `env:"OMI_SERVICES_PER_APP" default:"100000" help:"Most services of one app (${default}); -1: no limit."`
	MasterRate     int            `name:"master-rate-limit" env:"OMI_MASTER_RATE_LIMIT" default:"300" help:"Resets and rebindings of one app a minute (${default}); -1: no limit."`
	MasterQuota    int            `env:"OMI_MASTER_QUOTA" default:"5000" help:"Resets and rebindings of one app a day (${default}); -1: no limit."`
	RateLimit      int            `env:"OMI_RATE_LIMIT" default:"10" help:"Rotations of one service a minute (${default}); --rate-limit=-1: no limit."`
	JWKSMaxAge     *time.Duration `name:"jwks-max-age" env:"OMI_JWKS_MAX_AGE" placeholder:"60s" help:"How long caches may keep a JWK Set (60s; at most --grace-period / 3)."`
	WaitFor        []string       `name:"wait-for" env:"OMI_WAIT_FOR" placeholder:"DURABLE" help:"Another durable that a new key waits for, or NAME-*; repeatable."`
	ChangePolicy   bool           `name:"change-policy" env:"OMI_CHANGE_POLICY" help:"Record these settings for every registry on this database."`
	Batch          int            `env:"OMI_BATCH" default:"1024" help:"How many requests are decided together (${default}; at most 2048)."`
	StreamReplicas int            `env:"OMI_STREAM_REPLICAS" default:"1" help:"Replicas of the streams that this start creates (${default}; 3 on a cluster)."`
	PublishBatches bool           `env:"OMI_PUBLISH_BATCHES" help:"Publish in atomic batches, for a broker with sync_interval always."`
	LogLevel       slog.Level     `env:"OMI_LOG_LEVEL" default:"info" help:"debug, info, warn or error (${default})."`
}

// Help is shown by --help.
func (*serveCmd) Help() string {
	return `The flags from --grace-period to --wait-for are the policy. The database records it, and
every registry on that database must have the same; --change-policy records this one instead.

  --trust           if the signing key was changed, the earlier keys: events that they signed are
                    the registry's own. Give a stolen key its end: KEY@TIME
  --require-proof   own: bindings and resets; all: rotations too
  --master-…        limit Master Resets, and bindings of revoked services
  --jwks-max-age    at most a third of --grace-period, which is also the default if it is less than
                    60s. 0s: caches keep no set
  --wait-for        a new key also waits for this durable, besides those of Auth and Billing.
                    NAME-* is every instance of NAME
  --batch           a batch may have a few requests more, to keep those of one service together
  --max-…-bytes     a small broker gets smaller streams

docs/operations.md explains each setting.`
}

// Run serves until a signal comes.
func (c *serveCmd) Run() error {
	log := process.NewLog(os.Stderr, c.LogLevel)
	key, err := signingKey(c.SigningKey)
	if err != nil {
		return err
	}
	if c.GracePeriod <= 0 || c.MaxClockSkew <= 0 {
		return process.Usagef("--grace-period and --max-clock-skew are 1s or more; a request asks for less grace with its own grace_period")
	}
	if c.JWKSMaxAge != nil && *c.JWKSMaxAge < 0 {
		return process.Usagef("--jwks-max-age is how long a JWK Set may be kept, such as 60s, or 0s for not at all")
	}
	if c.RateLimit == 0 {
		return process.Usagef("--rate-limit is 1 or more rotations a minute, or -1 for no limit")
	}
	if c.ServicesPerApp == 0 || c.MasterRate == 0 || c.MasterQuota == 0 {
		return process.Usagef("--services-per-app, --master-rate-limit and --master-quota are 1 or more, or -1 for no limit")
	}
	if c.Batch < 1 || c.Batch > registry.MaxBatch {
		return process.Usagef("--batch is 1 to %d requests", registry.MaxBatch)
	}
	if c.StreamReplicas < 1 || c.StreamReplicas > registry.MaxReplicas {
		return process.Usagef("--stream-replicas is 1 to %d: NATS has no more", registry.MaxReplicas)
	}
	if c.Streams.MaxWaiting < 0 {
		return process.Usagef("--max-waiting is 1 or more requests")
	}
	proofs, err := events.ParseProofs(c.RequireProof)
	if err != nil {
		return process.Usagef("--require-proof is %q: %w", c.RequireProof, err)
	}
	policy := registry.Policy{
		Origin: c.Origin, GracePeriod: c.GracePeriod, MaxClockSkew: c.MaxClockSkew,
		RequireProof: proofs, RotationsPerMinute: c.RateLimit,
		ServicesPerApp: c.ServicesPerApp, MasterChangesPerMinute: c.MasterRate, MasterChangesPerDay: c.MasterQuota,
		JWKSMaxAge: c.jwksMaxAge(), WaitFor: c.WaitFor,
	}
	if policy, err = policy.WithDefaults(); err != nil {
		return process.Usage(err)
	}
	trust, err := ownTrust(c.Origin, key, c.Trust, c.TrustFile)
	if err != nil {
		return err
	}
	apps, err := registry.ReadApps(c.Apps)
	if err != nil {
		return process.Usagef("--apps: %w", err)
	}
	if err := errors.Join(c.Check(), process.CheckDatabase(c.Database.URL)); err != nil {
		return err
	}
	web, err := c.Web.Listen(log)
	if err != nil {
		return err
	}
	return process.Run(log, web.Run, func(ctx context.Context) error { return c.serve(ctx, log, key, trust, policy, apps, web) })
}

func (c *serveCmd) serve(ctx context.Context, log *slog.Logger, key events.SigningKey, trust events.Trust, policy registry.Policy, apps []registry.App, web *process.HTTP) error {
	store, err := c.Database.open(ctx, log)
	if err != nil {
		return err
	}
	defer closeStore(store, log)
	process.TendKeys(log, c.SigningKey)
	nc, err := c.Connect("omi-registry", log)
	if err != nil {
		return err
	}
	defer process.Close(nc, log)
	if err := c.addApps(ctx, log, store, policy, apps); err != nil {
		return usage(err)
	}
	r, err := registry.New(registry.Config{
		Policy: policy, ChangePolicy: c.ChangePolicy, Key: key, Trust: trust.TrustedKeys(), Store: store, Conn: nc, Batch: c.Batch, Replicas: c.StreamReplicas,
		PublishBatches: c.PublishBatches,
		Streams:        c.Streams.limits(), Metrics: web.Metrics, Now: clock(), Log: log,
	})
	if err != nil {
		return err
	}
	web.Ready(health.Parts(r.Checks()), r.Lookup.Routes())
	web.Announce()
	return usage(r.Run(ctx))
}

// addApps adds the apps, unless this registry may not serve the database at all.
func (c *serveCmd) addApps(ctx context.Context, log *slog.Logger, store *registry.Store, policy registry.Policy, apps []registry.App) error {
	if !c.ChangePolicy {
		if err := store.Admin().AwaitPolicy(ctx, policy, log); err != nil {
			return err
		}
	}
	return store.Admin().AddApps(ctx, apps, time.Now().Unix(), log)
}

// usage gives exit code 2 to errors that a person must fix.
func usage(err error) error {
	for _, target := range []error{
		registry.ErrOrigin, registry.ErrOtherPolicy, registry.ErrAppExists, registry.ErrMasterKey, registry.ErrReservedKey, registry.ErrReplacedMaster, registry.ErrSigningKey, events.ErrWeakKey, sqldb.ErrURL,
		registry.ErrStreamRoom,
	} {
		if errors.Is(err, target) {
			return process.Usage(err)
		}
	}
	return err
}

// jwksMaxAge converts the flag for the policy, where 0 means the default and a negative value means
// none.
func (c *serveCmd) jwksMaxAge() time.Duration {
	switch {
	case c.JWKSMaxAge == nil:
		return 0
	case *c.JWKSMaxAge == 0:
		return -time.Second
	}
	return *c.JWKSMaxAge
}

// signingKey reads the registry's key, and says how to make one.
func signingKey(path string) (events.SigningKey, error) {
	return process.ReadKey("--signing-key", path, "make it with `omi-registry keygen --out "+path+"`")
}

// ownTrust is the trust in a registry's own keys: the one that it signs with, and earlier ones that
// the flags name.
func ownTrust(origin string, key events.SigningKey, earlier []string, file string) (events.Trust, error) {
	trust, err := process.Trust{Origin: origin, Keys: append([]string{key.Public().String()}, earlier...), File: file}.Load()
	if err == nil && !slices.Contains(trust.PublicKeys(), key.Public()) {
		err = process.Usagef("--signing-key: --trust says that this key, %s, has ended: nothing that it signs would be believed. "+
			"Make another key with `omi-registry keygen`, and let the others trust it", key.Public())
	}
	return trust, err
}

func closeStore(store *registry.Store, log *slog.Logger) {
	if err := store.Close(); err != nil {
		log.Warn("close the database", "error", err)
	}
}

// streamFlags limit the streams.
type streamFlags struct {
	MaxWaiting      int64     `env:"OMI_MAX_WAITING" placeholder:"128" help:"How many requests of one kind may wait for one service (128)."`
	MaxRequestBytes streamLen `env:"OMI_MAX_REQUEST_BYTES" placeholder:"1GiB" help:"Size of the stream of requests (1GiB, or less at a small broker)."`
	MaxReceiptBytes streamLen `env:"OMI_MAX_RECEIPT_BYTES" placeholder:"1GiB" help:"Size of the stream of receipts; the oldest are deleted (the same)."`
	MaxEventBytes   streamLen `env:"OMI_MAX_EVENT_BYTES" placeholder:"64GiB" help:"Size of the stream of events (only the broker's own limit)."`
}

// streamLen is a number of bytes, such as 64MiB.
type streamLen int64

// leastStream is enough for a few messages of any size.
const leastStream = 1 << 20

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *streamLen) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n < leastStream || n > 1<<62 {
		return process.Usagef("a size is a number such as 64MiB or 2GB, and 1MiB or more, not %q", text)
	}
	*l = streamLen(n)
	return nil
}

func (f *streamFlags) limits() registry.StreamLimits {
	return registry.StreamLimits{
		Waiting: f.MaxWaiting, RequestBytes: int64(f.MaxRequestBytes), ReceiptBytes: int64(f.MaxReceiptBytes), EventBytes: int64(f.MaxEventBytes),
	}
}
