package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/internal/bench"
	"omiappreg.org/keyrotation/internal/process"
)

type benchCmd struct {
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
func (*benchCmd) Help() string {
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
func (c *benchCmd) AfterApply(given *kong.Context) error {
	nothing := map[string]bool{"rate": c.Rate == 0, "in-flight": c.InFlight == 0, "rotations": c.Rotations == 0, "duration": c.Duration == 0}
	instead := map[string]string{"rotations": fmt.Sprintf("%d, or %s of them with --rate", bench.DefaultRotations, bench.DefaultDuration), "duration": bench.DefaultDuration.String()}
	for _, flag := range given.Flags() {
		if flag.Set && nothing[flag.Name] {
			return process.Usagef("--%s: want more than 0; leave it out for %s", flag.Name, cmp.Or(instead[flag.Name], "a backlog"))
		}
	}
	return nil
}

// Run measures. It fails if anything was lost or applied twice.
func (c *benchCmd) Run() error { return bench.Run(bench.Config(*c)) }
