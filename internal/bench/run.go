package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/schollz/progressbar/v3"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/localserver"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/stack"
	"omiappreg.org/keyrotation/registry"
	"omiappreg.org/keyrotation/streams"
)

const (
	origin           = "omiappreg.org"
	limitSpan        = 1500 * time.Millisecond
	lookEvery        = 100 * time.Millisecond // how often progress is checked
	catchUpLookEvery = 5 * time.Millisecond   // the same, if the check ends the measurement
	// After this time without progress, missing rotations count as lost.
	stalledAfter      = 30 * time.Second
	acknowledgeWithin = 10 * time.Second
	requestBytes      = 64 << 20
	maxUnconfirmed    = 4096 // publications that the broker has not confirmed yet
	// clockSkew lets a request pass that was signed long before it is published.
	clockSkew = time.Hour
)

// run is one measurement, with one number of idle services.
type run struct {
	flags    *Config
	preload  int // idle services
	folder   string
	log      *slog.Logger
	cfg      stack.Config
	progress *progress
	metrics  *prometheus.Registry
	meter    *Meter
	load     *Load
	recorder *Recorder
	stack    *stack.Stack
	store    string
	server   *localserver.Server // nil: none was started
	js       jetstream.JetStream // the load generator's
	unstored atomic.Int64        // failed publications

	parts sync.WaitGroup
	stops []func() // the parts
	fail  context.CancelCauseFunc

	samples []Sample
	profile []byte
	result  result
	why     string // why anything was lost
}

func newRun(c *Config, preload int, folder string, log *slog.Logger) *run {
	return &run{
		flags: c, preload: preload, folder: folder, log: log, store: c.Store,
		progress: newProgress(), metrics: prometheus.NewRegistry(), meter: NewMeter(),
	}
}

// setUp makes the load, and configures the parts.
func (b *run) setUp() {
	c := b.flags
	b.load = NewLoad(c.Services, b.preload, c.Rotations)
	b.recorder = NewRecorder(b.load, c.InFlight)
	policy := registry.Policy{Origin: origin, MaxClockSkew: clockSkew, ServicesPerApp: -1}
	if c.mode() == modeOpen || c.Rotations > registry.DefaultRotationsPerMinute*c.Services {
		policy.RotationsPerMinute = -1 // the default limit would refuse some
	}
	app, _ := events.ParseAppID(App)
	b.cfg = stack.Config{
		Folder: b.folder, NATSAddr: "127.0.0.1:0", SyncAlways: c.SyncAlways, NATS: process.NATS{URL: c.NATSURL}, Policy: policy,
		// All requests may have to wait, also those of one service.
		Streams: registry.StreamLimits{Waiting: int64(c.Rotations), RequestBytes: max(requestBytes, int64(c.Rotations)*2048)},
		Apps:    []registry.App{{AppID: app, MasterPublicKey: events.GenerateSigningKey().Public()}},
		Metrics: b.metrics, Log: b.log,
		Committed: b.recorder.Committed, AuthApplied: b.recorder.Auth, BillingApplied: b.recorder.Billing,
		As: func(part string, do func() error) (err error) {
			As(context.Background(), part, func(context.Context) { err = do() })
			return err
		},
	}
}

// run prepares everything, measures, and cleans up.
func (b *run) run(ctx context.Context) (err error) {
	ctx, b.fail = context.WithCancelCause(ctx)
	defer func() {
		b.fail(nil)
		b.parts.Wait()
		if cause := context.Cause(ctx); err != nil && !errors.Is(cause, context.Canceled) {
			err = cause // err is only its consequence
		}
	}()
	if err := b.unused(ctx); err != nil {
		return err
	}
	b.progress.phase("making keys", -1)
	b.setUp()
	closeDatabases, err := b.openDatabases(ctx)
	if err != nil {
		return err
	}
	defer closeDatabases()
	if err := b.bindBefore(ctx); err != nil {
		return err
	}
	if b.stack, err = stack.Open(ctx, b.cfg); err != nil {
		return err
	}
	defer b.stack.Close()
	defer b.parts.Wait()
	defer b.fail(nil)
	if err := b.openStreams(ctx, b.stack); err != nil {
		return err
	}
	defer b.deleteStreams(ctx)
	defer func() { err = b.unreachable(err) }()
	b.progress.phase("the cores' Ed25519 limit", -1)
	limit := SignatureLimit(ctx, limitSpan)
	caughtUp, err := b.bind(ctx)
	if err != nil {
		return err
	}
	measured, err := b.measure(ctx)
	if err != nil {
		return err
	}
	return b.conclude(ctx, limit, caughtUp, measured)
}

// start runs a part until the returned function stops it, or ctx ends. A part that fails ends the
// run.
func (b *run) start(ctx context.Context, part string, run process.Actor) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	b.parts.Go(func() {
		defer close(ended)
		As(ctx, part, func(ctx context.Context) {
			if err := run(ctx); err != nil {
				b.fail(fmt.Errorf("%s: %w", part, err))
			}
		})
	})
	stop = func() {
		cancel()
		<-ended
	}
	b.stops = append(b.stops, stop)
	return stop
}

// openStreams connects to a stack's broker, and makes the streams.
func (b *run) openStreams(ctx context.Context, s *stack.Stack) error {
	nc, _, err := s.Connect("omi-bench", b.log)
	if err != nil {
		return err
	}
	b.js, err = jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(maxUnconfirmed),
		jetstream.WithPublishAsyncErrHandler(func(jetstream.JetStream, *nats.Msg, error) { b.unstored.Add(1) }))
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	return registry.EnsureStreamsWithin(ctx, b.js, 1, b.cfg.Streams)
}

// unreachable adds to an error that the broker was lost, if it did.
func (b *run) unreachable(err error) error {
	if err == nil || b.js.Conn().IsConnected() {
		return err
	}
	return process.Unreachable(fmt.Errorf("the broker went away, so nothing was measured: %w", process.Plain(err)))
}

// deleteStreams deletes the streams, if the broker is not ours.
func (b *run) deleteStreams(ctx context.Context) {
	if b.flags.NATSURL == "" {
		return // they go with the folder
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acknowledgeWithin)
	defer cancel()
	for _, name := range streamNames() {
		if err := b.js.DeleteStream(ctx, name); err != nil {
			b.log.Error("the benchmark could not delete a stream", "stream", name, "error", err)
		}
	}
}

func streamNames() []string {
	return []string{streams.Requests, streams.Invalidations, streams.Receipts}
}

// unused refuses a broker that has streams of a registry: the messages of this run must not reach
// its users.
func (b *run) unused(ctx context.Context) error {
	if b.flags.NATSURL == "" {
		return nil
	}
	nc, err := process.NATS{URL: b.flags.NATSURL}.ConnectNow(ctx, "omi-bench", b.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, acknowledgeWithin)
	defer cancel()
	for _, name := range streamNames() {
		_, err := js.Stream(ctx, name)
		if err == nil {
			return process.Usagef("--nats-url: the stream %s exists already: use a broker or an account without a registry", name)
		}
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return process.Unreachable(fmt.Errorf("--nats-url: look for the stream %s: %w", name, err))
		}
	}
	return nil
}

// progress shows the progress to a person at a terminal, and nothing to others.
type progress struct {
	terminal bool
	bar      *progressbar.ProgressBar // nil: no bar is shown
}

func newProgress() *progress {
	return &progress{terminal: isatty.IsTerminal(os.Stderr.Fd())}
}

// phase ends the bar of the phase before, and shows one for this phase. A total of -1 is unknown.
func (p *progress) phase(what string, total int) {
	p.end()
	if !p.terminal {
		return
	}
	p.bar = progressbar.NewOptions(total,
		progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(what), progressbar.OptionClearOnFinish(),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetPredictTime(true))
}

// set shows how much is done.
func (p *progress) set(done int64) {
	if p.bar != nil {
		_ = p.bar.Set64(done) // a lost terminal is no reason to stop
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}
