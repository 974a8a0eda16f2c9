package pin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

type checkCmd struct {
	session.Connection     `embed:""`
	session.OptionalTarget `embed:""`
	Flag                   `embed:""`
	Key                    []string `env:"OMI_KEY" sep:"none" placeholder:"FILE" help:"A key that you hold: changes that led to it are yours. Repeatable."`
}

// Help is shown by --help.
func (*checkCmd) Help() string {
	return `Compares the registry's signed history with the pin, for all pinned services or for one.
Exit code 0: nothing changed, or the holder of --key changed it. Exit code 1: look at what happened.

  omi pin check --app-id org.example.dev --service-id cms --key cms.pem

The key before signs each rotation. So if the current key is yours, all rotations since your last
binding or Master Reset are yours, too, and the pin follows them.`
}

// Run checks pins, and prints what it found.
func (c *checkCmd) Run() error {
	file, pins, err := c.toCheck()
	if err != nil {
		return err
	}
	mine, err := ownKeys(c.Key)
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
func (c *checkCmd) toCheck() (pinFile, []pin, error) {
	only, named, err := c.Target()
	if err != nil {
		return pinFile{}, nil, err
	}
	file, pins, err := c.load()
	if err != nil {
		return file, nil, err
	}
	if !named {
		if len(pins) == 0 {
			err = process.Usagef("nothing is pinned in %s: begin with omi pin add", file.path)
		}
		return file, pins, err
	}
	i := indexOf(pins, only)
	if i < 0 {
		return file, nil, process.Usagef("%s %w in %s: begin with omi pin add", only, errNotPinned, file.path)
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

// state says what happened to a pinned service.
type state string

const (
	unchanged state = "unchanged"
	moved     state = "moved" // by the owner
	// Not by the owner, if what we know is complete.
	changed      state = "changed"
	wentBack     state = "went_back"    // the registry knows less than the pin
	contradicted state = "contradicted" // the pinned sequence has another key
	// Another key signs, or another registry answers.
	registryChanged state = "registry_changed"
	unchecked       state = "unchecked" // there was no answer
)

// change is one event of a service, for programs.
type change struct {
	Sequence  int64            `json:"sequence"`
	Event     events.EventKind `json:"event"`
	Timestamp int64            `json:"timestamp"`
	PublicKey events.PublicKey `json:"public_key,omitzero"`
}

// result is the result for one service.
type result struct {
	AppID          events.AppID     `json:"app_id"`
	ServiceID      events.ServiceID `json:"service_id"`
	State          state            `json:"state"`
	Detail         string           `json:"detail"`
	PinnedSequence int64            `json:"pinned_sequence"`
	Sequence       int64            `json:"sequence,omitzero"` // as the registry shows it
	// since the pin, and not known to be the owner's
	Changes []change `json:"changes"`
	Fix     []string `json:"fix,omitzero"`

	publicKey events.PublicKey // the current one
}

func (f result) target() events.Target { return events.Target{App: f.AppID, Service: f.ServiceID} }
func (f result) ok() bool              { return f.State == unchanged || f.State == moved }
func (f result) alarms() bool          { return !f.ok() && f.State != unchecked }

// checkOne asks the registry of a pin what happened since.
func checkOne(ctx context.Context, s *session.Session, p pin, mine []events.PublicKey) (result, error) {
	none := result{AppID: p.AppID, ServiceID: p.ServiceID, PinnedSequence: p.Sequence, Changes: []change{}}
	trusting, err := asPinned(s, &p)
	if err != nil {
		return none, err
	}
	history, err := trusting.History(ctx, p.target())
	refusal := (*events.Refusal)(nil)
	switch {
	case err == nil:
		return p.compare(history, mine), nil
	case errors.Is(err, registryclient.ErrUnknownService):
		none.State = wentBack
		none.Detail = fmt.Sprintf("sequence %d is pinned, and the registry says that it was never bound", p.Sequence)
		none.Fix = fixRegistry()
		return none, nil
	case errors.As(err, &refusal):
		none.State = registryChanged
		none.Detail = fmt.Sprintf("the answer is not signed by the registry of the pin, %s: %s", p.Origin, refusal.Detail)
		none.Fix = []string{
			"Ask the registry's operator. If its key was changed: omi pin add " + session.FlagsOf(p.target()) + " --trust NEWKEY",
			"If it was not, another registry answers here: is --nats-url right?",
		}
		return none, nil
	}
	return none, err
}

// compare compares a history with a pin. mine are keys that only the owner holds.
func (p *pin) compare(h events.ServiceHistory, mine []events.PublicKey) result {
	f := result{AppID: p.AppID, ServiceID: p.ServiceID, PinnedSequence: p.Sequence, Sequence: h.Sequence, Changes: []change{}}
	all := inspect.Changes(h)
	at := slices.IndexFunc(all, func(e events.HistoryKey) bool { return e.Sequence == p.Sequence })
	switch {
	case h.Sequence < p.Sequence:
		f.State = wentBack
		f.Detail = fmt.Sprintf("the registry shows sequence %d, and %d is pinned: it was restored from an old backup, or it is another registry",
			h.Sequence, p.Sequence)
		f.Fix = fixRegistry()
		return f
	case at < 0 || all[at].PublicKey != p.PublicKey:
		f.State = contradicted
		f.Detail = fmt.Sprintf("the registry shows another key at sequence %d than the one that is pinned: its past was changed, "+
			"or it is another one", p.Sequence)
		f.Fix = fixRegistry()
		return f
	case at == len(all)-1:
		f.State, f.Detail = unchanged, fmt.Sprintf("sequence %d", p.Sequence)
		return f
	}
	f.publicKey = all[len(all)-1].PublicKey
	unknown, ownsCurrent := unproven(all[at+1:], mine), slices.Contains(mine, f.publicKey)
	if len(unknown) == 0 {
		f.State = moved
		f.Detail = fmt.Sprintf("changed by the holder of your key, from sequence %d to %d; the pin is moved",
			p.Sequence, h.Sequence)
		return f
	}
	f.State = changed
	for _, e := range unknown {
		f.Changes = append(f.Changes, change{e.Sequence, e.Event, e.From, e.PublicKey})
	}
	f.Detail = fmt.Sprintf("it was pinned at sequence %d, and is at %d; nothing proves that its owner asked for that",
		p.Sequence, h.Sequence)
	f.Fix = fixChanges(p.target(), unknown, ownsCurrent)
	return f
}

// unproven returns the changes that the owner's keys don't prove. The key before it signs each
// rotation, so the holder of a key made all the rotations that led to it, back to the last binding
// or Master Reset. The Master Key made those, and they replaced any earlier key.
func unproven(changes []events.HistoryKey, mine []events.PublicKey) []events.HistoryKey {
	newest := len(changes) - 1
	for newest >= 0 && !slices.Contains(mine, changes[newest].PublicKey) {
		newest--
	}
	for i := newest; i >= 0; i-- {
		if changes[i].Event == events.ServiceBinding || changes[i].Event == events.MasterReset {
			return slices.Concat(changes[:i], changes[newest+1:])
		}
	}
	return changes[newest+1:]
}

// fixChanges says what to do about changes that the owner is not known to have asked for.
func fixChanges(t events.Target, unknown []events.HistoryKey, ownsCurrent bool) []string {
	accept := "It was you, with another tool or on another machine: omi pin add " + session.FlagsOf(t) + " accepts it."
	switch {
	case slices.ContainsFunc(unknown, func(e events.HistoryKey) bool { return e.Event != events.KeyRotation }):
		return []string{accept, "It was not: someone else has the Master Key, which signs these. Tell the registry's operator at once."}
	case ownsCurrent:
		return []string{
			accept, "It was not: someone else had your key until you reset it. Find out how; the current key is yours.",
		}
	}
	return []string{
		accept,
		"It was not: someone else has your key. End all keys at once, and find out how it leaked:",
		"  omi reset " + session.FlagsOf(t) + " --master-key FILE --key FILE",
	}
}

func fixRegistry() []string {
	return []string{
		"Ask the registry's operator, and change no key before you know. Is --nats-url right?",
		"If its answer is right, omi pin add accepts it.",
	}
}
