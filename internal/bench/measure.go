package bench

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"omiappreg.org/keyrotation/events"
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

// FlushFolder makes the system write the cached data of a folder's files to the disk, and waits
// for it. Don't use it for SQLite's files: closing one of them would end the locks that this
// process has on it.
func FlushFolder(folder string) error {
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			err = syncFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the broker creates and removes files all the time
		}
		return err
	})
}

func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("write a file to the disk: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := file.Sync(); err != nil {
		return fmt.Errorf("write a file to the disk: %w", err)
	}
	return nil
}

// The Ed25519 work that a rotation always needs: the registry verifies the request and signs the
// event and the receipt, and each of two subscribers verifies the event.
const (
	VerificationsPerRotation = 3
	SignaturesPerRotation    = 2
)

// signedBytes is about the length of an event's canonical form.
const signedBytes = 400

// SignatureLimit measures, for the given time, how many rotations a second all cores together could
// do if they did nothing but the Ed25519 work, one by one with the standard library.
func SignatureLimit(ctx context.Context, span time.Duration) float64 {
	ctx, stop := context.WithTimeout(ctx, span)
	defer stop()
	var done atomic.Int64
	var running sync.WaitGroup
	began := time.Now()
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			private := events.GenerateSigningKey().Private()
			public := private.Public().(ed25519.PublicKey)
			message := make([]byte, signedBytes)
			signature := ed25519.Sign(private, message)
			for ctx.Err() == nil {
				for range VerificationsPerRotation {
					ed25519.Verify(public, message, signature)
				}
				for range SignaturesPerRotation {
					signature = ed25519.Sign(private, message)
				}
				done.Add(1)
			}
		})
	}
	running.Wait()
	return float64(done.Load()) / time.Since(began).Seconds()
}

// Usage is what this process has used, as the operating system counts it.
type Usage struct {
	CPU      time.Duration // user and system, of all its threads, since its start
	Resident int64         // memory now, in bytes
}

// Meter reads the [Usage] of this process.
type Meter struct{ registry *prometheus.Registry }

// NewMeter returns a meter.
func NewMeter() *Meter {
	m := &Meter{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Read returns what the process has used so far.
func (m *Meter) Read() (Usage, error) {
	var u Usage
	families, err := m.registry.Gather()
	if err != nil {
		return u, fmt.Errorf("read what the process uses: %w", err)
	}
	for _, f := range families {
		switch f.GetName() {
		case "process_cpu_seconds_total":
			u.CPU = time.Duration(f.GetMetric()[0].GetCounter().GetValue() * float64(time.Second))
		case "process_resident_memory_bytes":
			u.Resident = int64(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	return u, nil
}

// Peak samples the memory until ctx ends, and returns the maximum.
func (m *Meter) Peak(ctx context.Context) int64 {
	// a sample takes half a millisecond, which counts as the process's
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	var peak int64
	for {
		if u, err := m.Read(); err == nil {
			peak = max(peak, u.Resident)
		}
		select {
		case <-ctx.Done():
			return peak
		case <-ticker.C:
		}
	}
}
