package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/gofrs/flock"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
)

// pin is what was known of a service when somebody last looked and found it right.
type pin struct {
	AppID              events.AppID       `json:"app_id"`
	ServiceID          events.ServiceID   `json:"service_id"`
	Origin             string             `json:"origin"`               // of the registry
	RegistryPublicKeys []events.PublicKey `json:"registry_public_keys"` // trusted then
	Sequence           int64              `json:"sequence"`
	PublicKey          events.PublicKey   `json:"public_key,omitzero"` // current then; absent: it was revoked
	PinnedAt           int64              `json:"pinned_at"`           // seconds since the Unix epoch
}

func (p pin) target() events.Target { return events.Target{App: p.AppID, Service: p.ServiceID} }

// whole says whether the pin has all that omi pin gives one.
func (p pin) whole() bool {
	return !p.AppID.IsZero() && !p.ServiceID.IsZero() && p.Origin != "" && len(p.RegistryPublicKeys) > 0 && p.Sequence > 0
}

// pinsFlag is where pins are kept.
type pinsFlag struct {
	Pins string `env:"OMI_PINS" placeholder:"FILE" help:"The file of pins (omi/pins.json in your configuration folder)."`
}

func (f pinsFlag) file() (pinFile, error) {
	if f.Pins != "" {
		return pinFile{f.Pins}, nil
	}
	folder, err := os.UserConfigDir()
	if err != nil {
		return pinFile{}, process.Usagef("where to keep pins is not known (%w): give --pins FILE", err)
	}
	return pinFile{filepath.Join(folder, "omi", "pins.json")}, nil
}

// load reads what is there, before anybody is waited for.
func (f pinsFlag) load() (file pinFile, pins []pin, err error) {
	if file, err = f.file(); err == nil {
		pins, err = file.load()
	}
	return file, pins, err
}

// pinFile is a file of pins. Whoever reads it sees all of one state or all of the next: it is replaced by a rename.
// Whoever changes it holds a lock from its reading to its writing, and no longer, so that of two processes neither
// writes over what the other has just added.
type pinFile struct{ path string }

const (
	pinVersion = 1
	lockWithin = 5 * time.Second // for what takes milliseconds
	lockEach   = 10 * time.Millisecond
)

type pinDocument struct {
	Version int   `json:"version"`
	Pins    []pin `json:"pins"`
}

// load reads the pins; a file that is not there holds none.
func (f pinFile) load() ([]pin, error) {
	content, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, process.Usagef("--pins: %w", err)
	}
	var d pinDocument
	if err := json.Unmarshal(content, &d); err != nil {
		return nil, process.Usagef("--pins: %s is not a file of pins (%w): fix it, or delete it and pin again", f.path, err)
	}
	if d.Version != pinVersion {
		return nil, process.Usagef("--pins: %s is of version %d, and this omi knows %d", f.path, d.Version, pinVersion)
	}
	if i := slices.IndexFunc(d.Pins, func(p pin) bool { return !p.whole() }); i >= 0 {
		return nil, process.Usagef("--pins: %s is not a file of pins (number %d lacks a member): fix it, or delete it and pin again", f.path, i+1)
	}
	return d.Pins, nil
}

// update changes the pins while nobody else does. What change returns is written, unless it is an error.
func (f pinFile) update(change func([]pin) ([]pin, error)) (err error) {
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return process.Usagef("--pins: %w", err)
	}
	lock := flock.New(f.path + ".lock") // another file, since this one is replaced
	ctx, cancel := context.WithTimeout(context.Background(), lockWithin)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, lockEach); err != nil {
		return process.Usagef("--pins: lock %s: %w", lock.Path(), err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	pins, err := f.load()
	if err != nil {
		return err
	}
	if pins, err = change(pins); err != nil {
		return err
	}
	slices.SortFunc(pins, func(a, b pin) int { return strings.Compare(a.target().String(), b.target().String()) })
	content, err := json.Marshal(pinDocument{pinVersion, pins}, jsontext.WithIndent("  "))
	if err != nil {
		return fmt.Errorf("encode the pins: %w", err)
	}
	if err := keyfile.WriteFile(f.path, f.path, append(content, '\n')); err != nil {
		return process.Usagef("--pins: %w", err)
	}
	return nil
}

// set puts a pin in place of the one that was read. Where that one has changed meanwhile, another process knows better.
func (f pinFile) set(was, next pin) error {
	return f.update(func(pins []pin) ([]pin, error) {
		if i := indexOf(pins, next.target()); i >= 0 && pins[i].Sequence == was.Sequence && pins[i].PublicKey == was.PublicKey {
			pins[i] = next
		}
		return pins, nil
	})
}

// indexOf returns where the pin of a service is, or -1.
func indexOf(pins []pin, t events.Target) int {
	return slices.IndexFunc(pins, func(p pin) bool { return p.target() == t })
}

// pinnedHere refuses a request for another registry than that of the service's pin: it would be signed for that one. Where there is no
// pin, nothing is remembered. Without --origin, the registry itself has said who it is, and that is not signed.
func pinnedHere(t events.Target, origin string) error {
	file, err := pinsFlag{os.Getenv("OMI_PINS")}.file()
	if err != nil {
		return nil //nolint:nilerr // nowhere to keep pins: there are none
	}
	pins, err := file.load()
	if i := indexOf(pins, t); err == nil && i >= 0 && pins[i].Origin != origin {
		err = process.Refused(fmt.Errorf("nothing was sent: the registry here answers for %s, and the pin of %s is of %s: "+
			"if the service has moved, remove its pin (omi pin remove)", origin, t, pins[i].Origin))
	}
	return err
}

// advancePin moves the pin of a service forward over a change that this very tool asked for, so that omi pin check does
// not ask whose it was. It does so only if the pin was at the sequence just before: a change in between is nobody's that
// we know of. Where there is no pin, it does nothing. It is the best that can be done and not more: a command that ends
// between its receipt and this, or a file that can't be written, leaves a pin that asks once too often, and never once
// too little. So a fault is told on the standard error, and fails no command that is done.
func advancePin(t events.Target, r events.Receipt) {
	file, err := pinsFlag{os.Getenv("OMI_PINS")}.file()
	if err != nil || r.Event != events.RequestCommitted {
		return // nowhere to keep pins: there are none
	}
	pins, err := file.load()
	i := indexOf(pins, t)
	if err == nil && i >= 0 && pins[i].Origin == r.Origin && pins[i].Sequence+1 == r.Sequence {
		next := pins[i]
		next.Sequence, next.PublicKey, next.PinnedAt = r.Sequence, r.PublicKey, time.Now().Unix()
		err = file.set(pins[i], next)
	}
	if err != nil {
		printable.Fprintf(os.Stderr, "omi: the change is done, and its pin was not moved: %v\n", err)
	}
}
