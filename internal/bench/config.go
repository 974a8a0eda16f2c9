package bench

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// What is measured if the flags don't say how much: rotations, or with a rate, for how long.
const (
	DefaultRotations = 30_000
	DefaultDuration  = 10 * time.Second
)

const (
	maxRate = 1_000_000
	// keptEvents is how many events of a service the stream keeps. A backlog has at most that many
	// of one service, because a subscriber that is behind could miss earlier ones.
	keptEvents = 64
)

// Config is what to measure, as the flags of `omi bench` say, and where to write the results.
type Config struct {
	Services  int
	Rotations int           // 0: as many as the way of loading has by default
	Preload   []int         // idle services: one run with each number
	InFlight  int           // of a closed loop
	Rate      float64       // of an open loop, each second
	Duration  time.Duration // of an open loop, instead of Rotations

	Store       string
	DatabaseURL string
	NATSURL     string
	SyncAlways  bool
	Data        string

	Plot       string
	CPUProfile string
	JSON       bool
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
		c.Rotations = max(1, int(c.Rate*cmp.Or(c.Duration, DefaultDuration).Seconds()))
	default:
		c.Rotations = DefaultRotations
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
