// Package bench is `omi bench`: it runs a whole stack, makes its load, measures the results, and
// says where the CPU time went.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// Run measures what the configuration says, and prints the result. It fails if anything was lost
// or applied twice.
func (c *Config) Run() error {
	if err := c.check(); err != nil {
		return err
	}
	// The reader of the output may leave, and there are folders to remove.
	signal.Ignore(syscall.SIGPIPE)
	var runs []*run
	for _, preload := range c.Preload {
		b, err := c.measure(preload)
		if err != nil {
			return err
		}
		runs = append(runs, b)
		if !c.JSON && len(c.Preload) > 1 {
			if err := process.Print("%s\n", printable.Composed(b.result.text())); err != nil {
				return err
			}
		}
	}
	// The measurement took minutes: give what there is.
	return errors.Join(c.print(runs), c.write(runs), verdictOf(runs))
}

// verdictOf returns an error if anything was lost or applied twice.
func verdictOf(runs []*run) error {
	for _, b := range runs {
		if r := &b.result; r.Lost+r.Doubled > 0 {
			return process.Refused(fmt.Errorf("%d rotations were lost, %d applied twice%s", r.Lost, r.Doubled, b.why))
		}
	}
	return nil
}

// measure does one run in a folder of its own.
func (c *Config) measure(preload int) (*run, error) {
	folder, err := os.MkdirTemp(c.Data, "omi-bench-")
	if err != nil {
		return nil, process.Usagef("make a temporary folder: %w: choose another folder with --data", err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	log := process.NewLog(os.Stderr, slog.LevelError)
	b := newRun(c, preload, folder, log)
	finished := false
	err = process.Run(log, func(ctx context.Context) (err error) {
		As(ctx, LoadGenerator, func(ctx context.Context) { err = b.run(ctx) })
		finished = err == nil
		return err
	})
	b.progress.end()
	if err == nil && !finished {
		err = errors.New("stopped early: nothing was measured")
	}
	return b, process.Plain(err)
}

// write writes the files that the flags name.
func (c *Config) write(runs []*run) error {
	last := runs[len(runs)-1]
	for _, file := range []struct {
		flag, path string
		content    func() []byte
	}{
		{"--plot", c.Plot, func() []byte { return plotted(runs) }},
		{"--cpu-profile", c.CPUProfile, func() []byte { return last.profile }},
	} {
		if file.path == "" {
			continue
		}
		if err := os.WriteFile(file.path, file.content(), 0o644); err != nil { //nolint:gosec // it is for everyone to read
			return fmt.Errorf("%s: %w", file.flag, err)
		}
	}
	return nil
}

// print prints the results: one object, or a list for several runs.
func (c *Config) print(runs []*run) error {
	last := runs[len(runs)-1]
	switch {
	case c.JSON && len(runs) == 1:
		return process.PrintJSON(last.result)
	case c.JSON:
		results := make([]result, 0, len(runs))
		for _, b := range runs {
			results = append(results, b.result)
		}
		return process.PrintJSON(results)
	case len(runs) == 1:
		return process.Print("%s", printable.Composed(last.result.text()))
	}
	return process.Print("%s", printable.Composed(growthText(runs)))
}

// What is measured if the flags don't say how much: rotations, or with a rate, for how long.
const (
	defaultRotations = 30_000
	defaultDuration  = 10 * time.Second
)

const (
	maxRate = 1_000_000
	// keptEvents is how many events of a service the stream keeps. A backlog has at most that many
	// of one service, because a subscriber that is behind could miss earlier ones.
	keptEvents = 64
)

// Config is what `omi bench` measures, and where it writes the results: its grammar.
type Config struct {
	Services  int           `default:"1000" placeholder:"N" help:"Services that rotate, one after the other (${default})."`
	Rotations int           `placeholder:"N" help:"Rotations in all (30,000; with --rate, 10 s of them)."`
	Preload   []int         `placeholder:"N" help:"Idle services that exist too; several numbers: one run with each."`
	InFlight  int           `placeholder:"N" help:"Closed loop: keep N rotations under way."`
	Rate      float64       `placeholder:"N" help:"Open loop: publish N rotations a second, at fixed times."`
	Duration  time.Duration `placeholder:"TIME" help:"How long to load, with --rate instead of --rotations."`

	Store       string `enum:"sqlite,postgres," default:"" placeholder:"sqlite|postgres" help:"The databases: sqlite or postgres (sqlite, or that of --database-url)."`
	DatabaseURL string `name:"database-url" placeholder:"URL" help:"A server to use; the user must be allowed to create databases."`
	NATSURL     string `name:"nats-url" placeholder:"URL" help:"A broker to use, with an account without streams (one in this process)."`
	SyncAlways  bool   `help:"Let the broker sync each message to disk: sync_interval \"always\"."`
	Data        string `placeholder:"DIR" help:"Where to make databases and streams (the folder for temporary files)."`

	Plot       string `placeholder:"FILE" help:"Draw latency and throughput, or the cost of idle services (SVG)."`
	CPUProfile string `name:"cpu-profile" placeholder:"FILE" help:"Write a CPU profile of the measurement, for go tool pprof."`
	JSON       bool   `help:"Print only one JSON object, at the end."`
}

// Help is shown by --help.
func (*Config) Help() string {
	return `Broker, registry, Auth and Billing run in this process as delivered: file streams,
synchronous=FULL or fsync, real TCP connections. The services are bound and the requests signed
beforehand: the spec's own payloads, each signed by the key that the request before it brought.

Three ways to load it:
  a backlog (default)  all requests are in the stream when the registry starts. It measures
                       throughput, and latencies count from that start.
  --in-flight N        a closed loop: when a rotation is applied, the next one is published.
  --rate N             an open loop: N rotations a second are published, at fixed times. Latencies
                       count from the time when a request was due, so a system that falls behind
                       can't hide it.

The measurement begins when the streams are on the disk and PostgreSQL has vacuumed, and ends when
both subscribers have applied everything. The Ed25519 limit is how many rotations a second all cores
could do if they did only three verifications and two signatures for each, with the standard
library; the same run measures it beforehand. CPU is that of the whole process and, on Linux, of a
PostgreSQL that it started. Catching up is each subscriber alone, from an empty database. Exit code
1: an event was lost, or applied twice.

Databases and streams that the command makes are deleted at the end, also on a server or a broker
that you name. Without --sync-always, the broker has NATS's own sync_interval, two minutes.

  omi bench
  omi bench --services 20000 --rotations 100000
  omi bench --rate 200 --duration 30s --plot latency.svg
  omi bench --store postgres --preload 100000 --json
  omi bench --preload 0,10000,100000,1000000 --plot growth.svg`
}

// AfterApply refuses flags that would have no effect.
func (c *Config) AfterApply(given *kong.Context) error {
	nothing := map[string]bool{"rate": c.Rate == 0, "in-flight": c.InFlight == 0, "rotations": c.Rotations == 0, "duration": c.Duration == 0}
	instead := map[string]string{"rotations": fmt.Sprintf("%d, or %s of them with --rate", defaultRotations, defaultDuration), "duration": defaultDuration.String()}
	for _, flag := range given.Flags() {
		if flag.Set && nothing[flag.Name] {
			return process.Usagef("--%s: want more than 0; leave it out for %s", flag.Name, cmp.Or(instead[flag.Name], "a backlog"))
		}
	}
	return nil
}

// check refuses what can't be measured, and sets the defaults that depend on other flags.
func (c *Config) check() error {
	switch {
	case c.Services < 1:
		return process.Usagef("--services: want 1 or more")
	case c.Rotations < 0, c.InFlight < 0, c.Duration < 0, slices.ContainsFunc(c.Preload, func(n int) bool { return n < 0 }):
		return process.Usagef("--rotations, --preload, --in-flight and --duration are never negative")
	case c.Rate < 0 || c.Rate > maxRate || math.IsNaN(c.Rate):
		return process.Usagef("--rate: want more than 0, and %d at most", maxRate)
	case c.Rate > 0 && c.InFlight > 0:
		return process.Usagef("--rate is an open loop and --in-flight a closed one: give one of them")
	case c.Duration > 0 && (c.Rate == 0 || c.Rotations > 0):
		return process.Usagef("--duration needs --rate, and replaces --rotations")
	}
	for flag, path := range map[string]string{"--plot": c.Plot, "--cpu-profile": c.CPUProfile} {
		if err := canBeWritten(path); err != nil {
			return process.Usagef("%s: %w", flag, err)
		}
	}
	if c.NATSURL != "" {
		if c.SyncAlways {
			return process.Usagef("--sync-always needs a broker of its own: the one of --nats-url has its own sync_interval")
		}
		if err := (process.NATS{URL: c.NATSURL}).Check(); err != nil {
			return err
		}
	}
	if c.DatabaseURL != "" {
		if err := sqldb.CheckURL(c.DatabaseURL); err != nil {
			return process.Usagef("--database-url: %w", err)
		}
		if strings.HasPrefix(c.DatabaseURL, "sqlite:") {
			return process.Usagef("--database-url names a server; with SQLite, --data says where the files are made")
		}
		if c.Store == storeSQLite {
			return process.Usagef("--store sqlite and --database-url exclude each other: give one of them")
		}
		c.Store = storePostgres
	}
	c.Store = cmp.Or(c.Store, storeSQLite)
	if len(c.Preload) == 0 {
		c.Preload = []int{0}
	}
	switch {
	case c.Rotations > 0:
	case c.Rate > 0:
		c.Rotations = max(1, int(c.Rate*cmp.Or(c.Duration, defaultDuration).Seconds()))
	default:
		c.Rotations = defaultRotations
	}
	if most := (keptEvents - 1) * c.Services; c.mode() == modeBacklog && c.Rotations > most {
		return process.Usagef("--rotations: the stream keeps the last %d events of a service, so that %d services have a backlog of %d rotations at most: give more --services",
			keptEvents, c.Services, most)
	}
	return nil
}

// The ways to load a system.
const (
	modeBacklog = "backlog"
	modeClosed  = "closed_loop"
	modeOpen    = "open_loop"
)

func (c *Config) mode() string {
	switch {
	case c.Rate > 0:
		return modeOpen
	case c.InFlight > 0:
		return modeClosed
	}
	return modeBacklog
}

// canBeWritten returns why a file can't be written, if that is known before the measurement.
func canBeWritten(path string) error {
	if path == "" {
		return nil
	}
	if folder, err := os.Stat(filepath.Dir(path)); err != nil || !folder.IsDir() {
		return fmt.Errorf("there is no folder %s for the file", filepath.Dir(path))
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return keyfile.Writable(filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	return f.Close()
}
