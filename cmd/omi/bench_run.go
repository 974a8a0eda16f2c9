package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/bench"
	"omiappreg.org/keyrotation/internal/localserver"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/registry"
	"omiappreg.org/keyrotation/streams"
)

const (
	benchOrigin      = "omiappreg.org"
	benchLimitSpan   = 1500 * time.Millisecond
	benchLook        = 100 * time.Millisecond // how often progress is checked
	benchCatchUpLook = 5 * time.Millisecond   // the same, if the check ends the measurement
	// After this time without progress, missing rotations count as lost.
	benchStalled      = 30 * time.Second
	benchSettle       = 10 * time.Second
	benchRequestBytes = 64 << 20
	benchUnconfirmed  = 4096 // publications that the broker has not confirmed yet
	// benchSkew lets a request pass that was signed long before it is published.
	benchSkew = time.Hour
)

// benchRun is one run.
type benchRun struct {
	cmd      *benchCmd
	preload  int // idle services
	folder   string
	log      *slog.Logger
	cfg      stackConfig
	progress *benchProgress
	metrics  *prometheus.Registry
	meter    *bench.Meter
	load     *bench.Load
	recorder *bench.Recorder
	stack    *stack
	store    string
	server   *localserver.Server // nil: none was started
	js       jetstream.JetStream // the load generator's
	unstored atomic.Int64        // failed publications

	parts sync.WaitGroup
	stops []func() // the parts
	fail  context.CancelCauseFunc

	samples []bench.Sample
	profile []byte
	result  benchResult
	why     string // why anything was lost
}

func newBenchRun(c *benchCmd, preload int, folder string, log *slog.Logger) *benchRun {
	return &benchRun{
		cmd: c, preload: preload, folder: folder, log: log, store: c.Store,
		progress: newBenchProgress(), metrics: prometheus.NewRegistry(), meter: bench.NewMeter(),
	}
}

// setUp makes the load, and configures the parts.
func (b *benchRun) setUp() {
	c := b.cmd
	b.load = bench.NewLoad(c.Services, b.preload, c.Rotations)
	b.recorder = bench.NewRecorder(b.load, c.InFlight)
	policy := registry.Policy{Origin: benchOrigin, MaxClockSkew: benchSkew, ServicesPerApp: -1}
	if c.mode() == benchOpen || c.Rotations > registry.DefaultRotationsPerMinute*c.Services {
		policy.RotationsPerMinute = -1 // the default limit would refuse some
	}
	app, _ := events.ParseAppID(bench.App)
	b.cfg = stackConfig{
		Folder: b.folder, NATSAddr: "127.0.0.1:0", SyncAlways: c.SyncAlways, NATS: process.NATS{URL: c.NATSURL}, Policy: policy,
		// All requests may have to wait, also those of one service.
		Streams: registry.StreamLimits{Waiting: int64(c.Rotations), RequestBytes: max(benchRequestBytes, int64(c.Rotations)*2048)},
		Apps:    []registry.App{{AppID: app, MasterPublicKey: events.GenerateSigningKey().Public()}},
		Metrics: b.metrics, Log: b.log,
		Committed: b.recorder.Committed, AuthApplied: b.recorder.Auth, BillingApplied: b.recorder.Billing,
		As: func(part string, do func() error) (err error) {
			bench.As(context.Background(), part, func(context.Context) { err = do() })
			return err
		},
	}
}

// run prepares everything, measures, and cleans up.
func (b *benchRun) run(ctx context.Context) (err error) {
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
	if b.stack, err = newStack(ctx, b.cfg); err != nil {
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
	limit := bench.SignatureLimit(ctx, benchLimitSpan)
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
func (b *benchRun) start(ctx context.Context, part string, run process.Actor) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	b.parts.Go(func() {
		defer close(ended)
		bench.As(ctx, part, func(ctx context.Context) {
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
func (b *benchRun) openStreams(ctx context.Context, s *stack) error {
	nc, _, err := s.connect("omi-bench", b.log)
	if err != nil {
		return err
	}
	b.js, err = jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(benchUnconfirmed),
		jetstream.WithPublishAsyncErrHandler(func(jetstream.JetStream, *nats.Msg, error) { b.unstored.Add(1) }))
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	return registry.EnsureStreamsWithin(ctx, b.js, 1, b.cfg.Streams)
}

// unreachable adds to an error that the broker went away, if it did.
func (b *benchRun) unreachable(err error) error {
	if err == nil || b.js.Conn().IsConnected() {
		return err
	}
	return process.Unreachable(fmt.Errorf("the broker went away, so nothing was measured: %w", plain(err)))
}

// deleteStreams deletes the streams, if the broker is not ours.
func (b *benchRun) deleteStreams(ctx context.Context) {
	if b.cmd.NATSURL == "" {
		return // they go with the folder
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchSettle)
	defer cancel()
	for _, name := range benchStreams() {
		if err := b.js.DeleteStream(ctx, name); err != nil {
			b.log.Error("the benchmark could not delete a stream", "stream", name, "error", err)
		}
	}
}

func benchStreams() []string {
	return []string{streams.Requests, streams.Invalidations, streams.Receipts}
}

// unused refuses a broker that has streams of a registry: the messages of this run must not reach
// its users.
func (b *benchRun) unused(ctx context.Context) error {
	if b.cmd.NATSURL == "" {
		return nil
	}
	nc, err := process.NATS{URL: b.cmd.NATSURL}.ConnectNow(ctx, "omi-bench", b.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, benchSettle)
	defer cancel()
	for _, name := range benchStreams() {
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

// bindBefore publishes the bindings with a broker that is stopped before the stack's starts on its
// streams. So the services look as if they had existed for a while: for two minutes after its last
// message, nats-server keeps the subjects of each of its files on its heap, and the garbage
// collector of the whole process would mark them.
func (b *benchRun) bindBefore(ctx context.Context) error {
	if b.cmd.NATSURL != "" {
		return nil // the broker is not ours
	}
	key, err := readOrCreate(b.folder, registryKeyFile)
	if err != nil {
		return err
	}
	first := stack{}
	defer first.Close()
	if err := first.startBroker(ctx, b.cfg); err != nil {
		return err
	}
	if err := b.openStreams(ctx, &first); err != nil {
		return err
	}
	return b.publishBindings(ctx, key)
}

// bind gives all services their first keys. It publishes the events, unless they are there. The
// registry takes them into its database as after the loss of one, and the subscribers read them as
// new ones do, one after the other. It returns how many events a second the slower one applied.
func (b *benchRun) bind(ctx context.Context) (caughtUp float64, err error) {
	if b.cmd.NATSURL != "" {
		if err := b.publishBindings(ctx, b.stack.key); err != nil {
			return 0, err
		}
	}
	b.progress.phase("the registry's database", -1)
	trust, err := b.stack.trust(b.cfg)
	if err != nil {
		return 0, err
	}
	recovered, err := b.stack.store.Recover(ctx, registry.Recovery{JetStream: b.js, Trust: trust, Key: b.stack.key, Log: b.log})
	if err != nil {
		return 0, err
	}
	if recovered.Changes != b.load.Bindings() {
		return 0, fmt.Errorf("of %d services only %d are in the registry's database", b.load.Bindings(), recovered.Changes)
	}
	for _, part := range []struct {
		name  string
		run   process.Actor
		bound func() int64
	}{
		{bench.Auth, b.stack.auth.Run, b.recorder.BoundByAuth},
		{bench.Billing, b.stack.billing.Run, b.recorder.BoundByBilling},
	} {
		b.progress.phase(part.name+" catches up", b.load.Bindings())
		began := time.Now()
		b.start(ctx, part.name, part.run)
		for part.bound() < int64(b.load.Bindings()) {
			if err := b.look(ctx, benchCatchUpLook, part.bound); err != nil {
				return 0, err
			}
		}
		speed := float64(b.load.Bindings()) / time.Since(began).Seconds()
		if caughtUp == 0 || speed < caughtUp {
			caughtUp = speed
		}
	}
	return caughtUp, b.warmUp(ctx)
}

// look waits a little, and shows the progress.
func (b *benchRun) look(ctx context.Context, after time.Duration, done func() int64) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(after):
		b.progress.set(done())
		return nil
	}
}

// warmUp runs a registry once without requests, because its first start compares its database with
// the stream of events.
func (b *benchRun) warmUp(ctx context.Context) error {
	b.progress.phase("the registry compares database and stream", -1)
	cfg := b.cfg
	cfg.Metrics = nil
	first, err := b.stack.newRegistry(cfg)
	if err != nil {
		return err
	}
	defer b.start(ctx, bench.Registry, first.Run)()
	return b.await(ctx, first.Ready)
}

func (b *benchRun) await(ctx context.Context, ready func() error) error {
	for ready() != nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(healthEvery):
		}
	}
	return nil
}

// measured is what is known once both subscribers have applied everything.
type measured struct {
	began  time.Time
	cpu    time.Duration // of this process
	server time.Duration // of the database server's
	peak   int64         // bytes of memory
}

// measure loads the system, and returns when everything is applied, or nothing moves any more.
func (b *benchRun) measure(ctx context.Context) (measured, error) {
	requests, err := b.sign(ctx)
	if err != nil {
		return measured{}, err
	}
	backlog := b.cmd.mode() == benchBacklog
	if backlog {
		b.progress.phase("publishing the backlog", len(requests))
		if err := b.publishAll(ctx, requests); err != nil {
			return measured{}, err
		}
		requests = nil
	} else {
		b.start(ctx, bench.Registry, b.stack.registry.Run)
		if err := b.await(ctx, b.stack.registry.Ready); err != nil {
			return measured{}, err
		}
	}
	// A million services make hundreds of MB. A system that has run for a while has them on the
	// disk.
	b.progress.phase("writing the rest to the disk", -1)
	// The databases sync theirs.
	if err := bench.Settle(filepath.Join(b.folder, brokerFolder)); err != nil {
		return measured{}, err
	}
	if err := b.settleDatabases(ctx); err != nil {
		return measured{}, err
	}
	debug.FreeOSMemory() // memory of the preparation does not count
	b.progress.phase("rotations applied by both", b.load.Rotations)
	before, err := b.meter.Read()
	if err != nil {
		return measured{}, err
	}
	server := b.serverCPU()
	profile, err := bench.StartProfile()
	if err != nil {
		return measured{}, err
	}
	watching, stopWatching := context.WithCancel(ctx)
	peak := make(chan int64, 1)
	go func() { peak <- b.meter.Peak(watching) }()
	m := measured{began: time.Now()}
	b.recorder.Begin(m.began)
	if backlog {
		b.start(ctx, bench.Registry, b.stack.registry.Run)
	}
	err = b.drive(ctx, m.began, requests)
	stopWatching()
	b.profile = profile.Stop()
	m.peak = <-peak
	if err != nil {
		return m, err
	}
	after, err := b.meter.Read()
	m.cpu, m.server = after.CPU-before.CPU, b.serverCPU()-server
	return m, err
}
