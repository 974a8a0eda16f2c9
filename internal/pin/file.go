package pin

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

// pin is what was known of a service when its owner last accepted it.
type pin struct {
	AppID              events.AppID       `json:"app_id"`
	ServiceID          events.ServiceID   `json:"service_id"`
	Origin             string             `json:"origin"`               // of the registry
	RegistryPublicKeys []events.PublicKey `json:"registry_public_keys"` // trusted at that time
	Sequence           int64              `json:"sequence"`
	// current at that time; absent: it was revoked
	PublicKey events.PublicKey `json:"public_key,omitzero"`
	// seconds since the Unix epoch
	PinnedAt int64 `json:"pinned_at"`
}

func (p pin) target() events.Target { return events.Target{App: p.AppID, Service: p.ServiceID} }

// whole reports whether the pin has everything that omi pin writes.
func (p pin) whole() bool {
	return !p.AppID.IsZero() && !p.ServiceID.IsZero() && p.Origin != "" && len(p.RegistryPublicKeys) > 0 && p.Sequence > 0
}

// Flag names the file of pins.
type Flag struct {
	Pins string `env:"OMI_PINS" placeholder:"FILE" help:"The file of pins (omi/pins.json in your configuration folder)."`
}

func (f Flag) file() (pinFile, error) {
	if f.Pins != "" {
		return pinFile{f.Pins}, nil
	}
	folder, err := os.UserConfigDir()
	if err != nil {
		return pinFile{}, process.Usagef("there is no folder for pins (%w): give --pins FILE", err)
	}
	return pinFile{filepath.Join(folder, "omi", "pins.json")}, nil
}

// load reads the file before the command waits for the broker.
func (f Flag) load() (file pinFile, pins []pin, err error) {
	if file, err = f.file(); err == nil {
		pins, err = file.load()
	}
	return file, pins, err
}

// pinFile is a file of pins. It is replaced by a rename, so a reader sees all of one state or all
// of the next. A writer holds a lock from its reading to its writing, and no longer, so that no
// process overwrites what another has just added.
type pinFile struct{ path string }

const (
	version    = 1
	lockWithin = 5 * time.Second // for work that takes milliseconds
	lockEach   = 10 * time.Millisecond
)

type document struct {
	Version int   `json:"version"`
	Pins    []pin `json:"pins"`
}

// load reads the pins. A missing file holds none.
func (f pinFile) load() ([]pin, error) {
	content, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, process.Usagef("--pins: %w", err)
	}
	var d document
	if err := json.Unmarshal(content, &d); err != nil {
		return nil, process.Usagef("--pins: %s is not a file of pins (%w): fix it, or delete it and pin again", f.path, err)
	}
	if d.Version != version {
		return nil, process.Usagef("--pins: %s is of version %d, and this omi knows %d", f.path, d.Version, version)
	}
	if i := slices.IndexFunc(d.Pins, func(p pin) bool { return !p.whole() }); i >= 0 {
		return nil, process.Usagef("--pins: %s is not a file of pins (number %d lacks a member): fix it, or delete it and pin again", f.path, i+1)
	}
	return d.Pins, nil
}

// update changes the pins under the lock. It writes what change returns, unless that is an error.
func (f pinFile) update(change func([]pin) ([]pin, error)) (err error) {
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return process.Usagef("--pins: %w", err)
	}
	lock := flock.New(f.path + ".lock") // another file, because this one is replaced
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
	content, err := json.Marshal(document{version, pins}, jsontext.WithIndent("  "))
	if err != nil {
		return fmt.Errorf("encode the pins: %w", err)
	}
	if err := keyfile.WriteFile(f.path, f.path, append(content, '\n')); err != nil {
		return process.Usagef("--pins: %w", err)
	}
	return nil
}

// set replaces the pin that was read. If another process has changed that pin meanwhile, the
// other's stays.
func (f pinFile) set(was, next pin) error {
	return f.update(func(pins []pin) ([]pin, error) {
		if i := indexOf(pins, next.target()); i >= 0 && pins[i].Sequence == was.Sequence && pins[i].PublicKey == was.PublicKey {
			pins[i] = next
		}
		return pins, nil
	})
}

// indexOf returns the index of a service's pin, or -1.
func indexOf(pins []pin, t events.Target) int {
	return slices.IndexFunc(pins, func(p pin) bool { return p.target() == t })
}

// CheckRegistry refuses a request if the service's pin names another registry: it would be signed
// for that one. Without a pin, nothing is remembered. Without --origin, the registry itself has
// said which one it is, and that is not signed.
func CheckRegistry(t events.Target, origin string) error {
	file, err := Flag{os.Getenv("OMI_PINS")}.file()
	if err != nil {
		return nil //nolint:nilerr // nowhere to keep pins: there are none
	}
	pins, err := file.load()
	if i := indexOf(pins, t); err == nil && i >= 0 && pins[i].Origin != origin {
		err = process.Refused(fmt.Errorf("nothing was sent: the registry here answers for %s, and the pin of %s names %s: "+
			"if the service has moved, remove its pin (omi pin remove)", origin, t, pins[i].Origin))
	}
	return err
}

// Advance moves the pin of a service forward over a change that this tool asked for, so that omi
// pin check does not report it. It does so only if the pin was at the sequence just before, because
// a change in between is not known to be ours. Without a pin, it does nothing. It is a best effort:
// if a command ends between its receipt and this, or the file can't be written, the pin reports a
// change too many, and never one too few. So a failure is printed on the standard error, and fails
// no command that is done.
func Advance(t events.Target, r events.Receipt) {
	file, err := Flag{os.Getenv("OMI_PINS")}.file()
	if err != nil || r.Event != events.RequestCommitted {
		return // there is no place for pins, so there are none
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
