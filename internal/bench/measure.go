package bench

import (
	"context"
	"path/filepath"
	"runtime/debug"
	"time"

	"omiappreg.org/keyrotation/internal/stack"
)

// measured is what is known once both subscribers have applied everything.
type measured struct {
	began  time.Time
	cpu    time.Duration // of this process
	server time.Duration // of the database server's
	peak   int64         // bytes of memory
}

// measure loads the system, and returns when everything is applied, or nothing moves any more.
func (b *run) measure(ctx context.Context) (measured, error) {
	requests, err := b.sign(ctx)
	if err != nil {
		return measured{}, err
	}
	backlog := b.flags.mode() == modeBacklog
	if backlog {
		b.progress.phase("publishing the backlog", len(requests))
		if err := b.publishAll(ctx, requests); err != nil {
			return measured{}, err
		}
		requests = nil
	} else {
		b.start(ctx, Registry, b.stack.Registry.Run)
		if err := b.await(ctx, b.stack.Registry.Ready); err != nil {
			return measured{}, err
		}
	}
	// A million services make hundreds of MB. A system that has run for a while has them on the
	// disk.
	b.progress.phase("writing the rest to the disk", -1)
	// The databases sync theirs.
	if err := FlushFolder(filepath.Join(b.folder, stack.BrokerFolder)); err != nil {
		return measured{}, err
	}
	if err := b.vacuumDatabases(ctx); err != nil {
		return measured{}, err
	}
	debug.FreeOSMemory() // memory of the preparation does not count
	b.progress.phase("rotations applied by both", b.load.Rotations)
	before, err := b.meter.Read()
	if err != nil {
		return measured{}, err
	}
	server := b.serverCPU()
	profile, err := StartProfile()
	if err != nil {
		return measured{}, err
	}
	watching, stopWatching := context.WithCancel(ctx)
	peak := make(chan int64, 1)
	go func() { peak <- b.meter.Peak(watching) }()
	m := measured{began: time.Now()}
	b.recorder.Begin(m.began)
	if backlog {
		b.start(ctx, Registry, b.stack.Registry.Run)
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
