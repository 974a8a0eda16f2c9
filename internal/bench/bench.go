// Package bench is `omi bench`: it runs a whole stack, makes its load, measures the results, and says
// where the CPU time went.
package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
)

// Run measures what the configuration says, and prints the result. It fails if anything was lost or applied twice.
func Run(c Config) error {
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
