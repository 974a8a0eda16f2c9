package pin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// Check checks the pins, or only that of one service, and prints what it found. keys are files
// of keys that the owner holds.
func Check(c session.Connection, f Flag, only *events.Target, keys []string) error {
	file, pins, err := f.toCheck(only)
	if err != nil {
		return err
	}
	mine, err := ownKeys(keys)
	if err != nil {
		return err
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		var report []result
		var failed error
		for _, p := range pins {
			f, err := checkOne(ctx, s, p, mine)
			if err != nil {
				f.State, f.Detail = unchecked, process.Plain(err).Error()
				failed = cmp.Or(failed, fmt.Errorf("check %s: %w", p.target(), err))
			}
			if f.State == moved {
				next := p
				next.Sequence, next.PublicKey, next.PinnedAt = f.Sequence, f.publicKey, time.Now().Unix()
				if err := file.set(p, next); err != nil {
					return err
				}
			}
			report = append(report, f)
		}
		if err := printReport(c.JSON, report); err != nil {
			return err
		}
		if n := count(report, result.alarms); n > 0 {
			return process.Refused(fmt.Errorf("look at %d of %d pinned services", n, len(report)))
		}
		return failed
	})
}

// toCheck returns the pins to check.
func (f Flag) toCheck(only *events.Target) (pinFile, []pin, error) {
	file, pins, err := f.load()
	if err != nil {
		return file, nil, err
	}
	if only == nil {
		if len(pins) == 0 {
			err = process.Usagef("nothing is pinned in %s: begin with omi pin add", file.path)
		}
		return file, pins, err
	}
	i := indexOf(pins, *only)
	if i < 0 {
		return file, nil, process.Usagef("%s %w in %s: begin with omi pin add", *only, errNotPinned, file.path)
	}
	return file, pins[i : i+1], nil
}

// ownKeys returns the keys that the owner holds. After a crash or a refusal, a key's file has keys
// next to it that the registry may have committed nevertheless. A key names one service for ever,
// so it can't be mistaken for another's.
func ownKeys(files []string) ([]events.PublicKey, error) {
	var keys []events.PublicKey
	for _, path := range files {
		for _, file := range []string{client.KeyFile(path), client.PendingFile(path)} {
			key, err := keyfile.Read(file)
			if errors.Is(err, keyfile.ErrMissing) && file != client.KeyFile(path) {
				continue
			}
			if err != nil {
				return nil, process.Usagef("--key: %w", err)
			}
			keys = append(keys, key.Public())
		}
	}
	return keys, nil
}

// printReport prints what was found.
func printReport(asJSON bool, report []result) error {
	if asJSON {
		return process.PrintJSON(struct {
			Pins []result `json:"pins"`
			OK   bool     `json:"ok"`
		}{report, count(report, result.ok) == len(report)})
	}
	var text strings.Builder
	for _, f := range report {
		end := ""
		if len(f.Changes) > 0 {
			end = ":"
		}
		printable.Fprintf(&text, "%s: %s: %s%s\n", f.target(), f.State, f.Detail, end)
		for _, e := range f.Changes {
			key := "(all keys ended)"
			if !e.PublicKey.IsZero() {
				key = e.PublicKey.String()
			}
			printable.Fprintf(&text, "  sequence %d  %s  %s  %s\n", e.Sequence, e.Event, printable.Date(e.Timestamp), key)
		}
		for _, line := range f.Fix {
			printable.Fprintf(&text, "  %s\n", line)
		}
	}
	return process.Print("%s", &text)
}

func count(report []result, which func(result) bool) (n int) {
	for _, f := range report {
		if which(f) {
			n++
		}
	}
	return n
}
