package pin

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
)

// testKeys are public keys by name: the owner's begin with a small letter, a stranger's with a capital.
type testKeys map[string]events.PublicKey

func (k testKeys) get(name string) events.PublicKey {
	if name == "" {
		return events.PublicKey{}
	}
	if _, ok := k[name]; !ok {
		k[name] = events.GenerateSigningKey().Public()
	}
	return k[name]
}

// history makes a history of events like "bind a", "rotate b", "reset c", "revoke", one a second.
func (k testKeys) history(list ...string) events.ServiceHistory {
	h := events.ServiceHistory{Sequence: int64(len(list))}
	for i, line := range list {
		word, name, _ := strings.Cut(line, " ")
		at := int64(i + 1)
		if n := len(h.Keys); n > 0 && h.Keys[n-1].Until == nil {
			h.Keys[n-1].Until = &at
		}
		if word != "revoke" {
			event := map[string]events.EventKind{
				"bind": events.ServiceBinding, "rotate": events.KeyRotation, "reset": events.MasterReset,
			}[word]
			h.Keys = append(h.Keys, events.HistoryKey{PublicKey: k.get(name), Event: event, Sequence: at, From: at})
		}
	}
	return h
}

func TestPinCompare(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pinned  int
		key     string // at the pin
		history []string
		mine    []string
		want    state
		changes []int64
	}{
		"nothing happened":      {1, "a", []string{"bind a"}, nil, unchanged, nil},
		"revoked, as pinned":    {2, "", []string{"bind a", "revoke"}, nil, unchanged, nil},
		"rotated by anybody":    {1, "a", []string{"bind a", "rotate b", "rotate c"}, nil, changed, []int64{2, 3}},
		"rotated by the owner":  {1, "a", []string{"bind a", "rotate b", "rotate c"}, []string{"c"}, moved, nil},
		"rotated by a stranger": {1, "a", []string{"bind a", "rotate X"}, []string{"a"}, changed, []int64{2}},
		"rotated by both": {1, "a", []string{"bind a", "rotate b", "rotate X", "rotate Y"}, []string{"b"}, changed,
			[]int64{3, 4}},
		"reset by the owner": {1, "a", []string{"bind a", "reset b"}, []string{"b"}, moved, nil},
		"reset, and rotated": {1, "a", []string{"bind a", "reset b", "rotate c"}, []string{"c"}, moved, nil},
		"a stranger, then reset": {
			1, "a", []string{"bind a", "rotate X", "reset b", "rotate c"}, []string{"c"}, changed, []int64{2},
		},
		"a stranger before and after": {
			1, "a", []string{"bind a", "rotate X", "reset b", "rotate Y"}, []string{"b"}, changed, []int64{2, 4},
		},
		"a stranger before the pin": {3, "b", []string{"bind a", "rotate X", "reset b", "rotate c"}, []string{"c"}, moved, nil},
		"revoked":                   {1, "a", []string{"bind a", "revoke"}, []string{"a"}, changed, []int64{2}},
		"revoked and bound again":   {1, "a", []string{"bind a", "revoke", "bind b"}, []string{"b"}, changed, []int64{2}},
		"bound again":               {2, "", []string{"bind a", "revoke", "bind b"}, []string{"b"}, moved, nil},
		"an old backup":             {3, "c", []string{"bind a", "rotate b"}, []string{"b"}, wentBack, nil},
		"another past":              {2, "b", []string{"bind a", "rotate X", "rotate Y"}, []string{"Y"}, contradicted, nil},
		"another past, revoked":     {2, "b", []string{"bind a", "revoke", "bind c"}, []string{"c"}, contradicted, nil},
	} {
		keys, mine := testKeys{}, []events.PublicKey{}
		for _, name := range c.mine {
			mine = append(mine, keys.get(name))
		}
		p := pin{Sequence: int64(c.pinned), PublicKey: keys.get(c.key)}
		h := keys.history(c.history...)
		f := p.compare(h, mine)
		var changes []int64
		for _, change := range f.Changes {
			changes = append(changes, change.Sequence)
			if change.Timestamp != change.Sequence {
				t.Errorf("%s: the change of second %d is said to be of %d", name, change.Sequence, change.Timestamp)
			}
		}
		if f.State != c.want || !slices.Equal(changes, c.changes) {
			t.Errorf("%s: %s %v, want %s %v", name, f.State, changes, c.want, c.changes)
		}
		if f.alarms() != (len(f.Fix) > 0) {
			t.Errorf("%s: %s, with advice %q", name, f.State, f.Fix)
		}
		if f.State == moved && f.publicKey != h.Keys[len(h.Keys)-1].PublicKey {
			t.Errorf("%s: the pin moves to another key than the last", name)
		}
	}
}

// somePin is one of service s<n>.
func somePin(t *testing.T, n int) pin {
	t.Helper()
	target, err := events.ParseTarget("org.example.s" + strconv.Itoa(n))
	if err != nil {
		t.Fatal(err)
	}
	key := events.GenerateSigningKey().Public()
	return pin{
		AppID: target.App, ServiceID: target.Service, Origin: "omiappreg.org", RegistryPublicKeys: []events.PublicKey{key},
		Sequence: 1, PublicKey: key, PinnedAt: 1705412600,
	}
}

func add(p pin) func([]pin) ([]pin, error) {
	return func(pins []pin) ([]pin, error) { return append(pins, p), nil }
}

// TestPinFileShared has many change one file at a time, as so many processes would: each opens the lock anew.
func TestPinFileShared(t *testing.T) {
	t.Parallel()
	const writers = 8 // each writes to the disk, and waits for the others for five seconds at most
	file := pinFile{filepath.Join(t.TempDir(), "omi", "pins.json")}
	var all sync.WaitGroup
	for n := range writers {
		p := somePin(t, n)
		all.Go(func() {
			if err := file.update(add(p)); err != nil {
				t.Error(err)
			}
			if _, err := file.load(); err != nil {
				t.Error("a reader sees half of it:", err)
			}
		})
	}
	all.Wait()
	pins, err := file.load()
	if err != nil || len(pins) != writers {
		t.Fatalf("%d of %d pins are left: %v", len(pins), writers, err)
	}
	if info, err := os.Stat(file.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode: %v, %v", info, err)
	}
}

func TestPinFileKeeps(t *testing.T) {
	t.Parallel()
	file := pinFile{filepath.Join(t.TempDir(), "pins.json")}
	want := somePin(t, 1)
	if err := file.update(add(want)); err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("no")
	if err := file.update(func([]pin) ([]pin, error) { return nil, refusal }); !errors.Is(err, refusal) {
		t.Errorf("a change that is refused: %v", err)
	}
	next := want
	next.Sequence = 2
	stale := want
	stale.Sequence = 7
	if err := file.set(stale, next); err != nil {
		t.Error(err)
	}
	got, err := file.load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]pin{want}, got, cmp.Comparer(func(a, b events.PublicKey) bool { return a == b }),
		cmp.Comparer(func(a, b events.AppID) bool { return a == b }),
		cmp.Comparer(func(a, b events.ServiceID) bool { return a == b })); diff != "" {
		t.Errorf("neither a refused change nor one of a pin that has moved is written:\n%s", diff)
	}
}

func TestAdvancePin(t *testing.T) {
	p := somePin(t, 1)
	next := events.GenerateSigningKey().Public()
	receipt := events.Receipt{
		Target: p.target(), Origin: p.Origin, Event: events.RequestCommitted, Sequence: 2, PublicKey: next,
	}
	for name, c := range map[string]struct {
		change   func(*events.Receipt)
		advances bool
	}{
		"the next change":   {func(*events.Receipt) {}, true},
		"a revocation":      {func(r *events.Receipt) { r.PublicKey = events.PublicKey{} }, true},
		"one is missing":    {func(r *events.Receipt) { r.Sequence = 3 }, false},
		"it came before":    {func(r *events.Receipt) { r.Sequence = 1 }, false},
		"refused":           {func(r *events.Receipt) { r.Event = events.RequestRejected }, false},
		"another registry":  {func(r *events.Receipt) { r.Origin = "example.org" }, false},
		"of another target": {func(r *events.Receipt) { r.Target.Service = somePin(t, 2).ServiceID }, false},
	} {
		t.Run(name, func(t *testing.T) {
			file := pinFile{filepath.Join(t.TempDir(), "pins.json")}
			t.Setenv("OMI_PINS", file.path)
			Advance(p.target(), receipt) // there is no pin, and none is made
			if err := file.update(add(p)); err != nil {
				t.Fatal(err)
			}
			r := receipt
			c.change(&r)
			Advance(r.Target, r)
			pins, err := file.load()
			if err != nil || len(pins) != 1 {
				t.Fatal(pins, err)
			}
			want := p
			if c.advances {
				want.Sequence, want.PublicKey = r.Sequence, r.PublicKey
			}
			if pins[0].Sequence != want.Sequence || pins[0].PublicKey != want.PublicKey {
				t.Errorf("the pin is at sequence %d with %s", pins[0].Sequence, pins[0].PublicKey)
			}
		})
	}
}

func TestPinFileDefault(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", "/somewhere")
	t.Setenv("HOME", "/home/somebody")
	t.Setenv("AppData", "/somewhere")
	file, err := Flag{}.file()
	if err != nil || filepath.Base(file.path) != "pins.json" || filepath.Base(filepath.Dir(file.path)) != "omi" {
		t.Errorf("pins are kept in %s (%v)", file.path, err)
	}
	if file, err := (Flag{"here.json"}).file(); err != nil || file.path != "here.json" {
		t.Errorf("pins are kept in %s (%v)", file.path, err)
	}
}
