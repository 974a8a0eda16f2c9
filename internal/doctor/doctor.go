// Package doctor is `omi doctor`: it finds what is wrong with a deployment or a key, from outside,
// and says how to fix it. It also makes the checks of `omi rotate --dry-run`.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// Config is what to look at, as the flags of `omi doctor` say.
type Config struct {
	session.Connection
	session.OptionalTarget
	Key       string
	MasterKey string
}

// state is the result of a check.
type state string

const (
	stateOK      state = "ok"
	stateWarning state = "warning"
	stateWrong   state = "wrong"
)

// check is one line of the report.
type check struct {
	Name   string `json:"name"`
	State  state  `json:"state"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitzero"`
}

// doctor makes checks, one after the other, and notes the results.
type doctor struct {
	flags  *Config
	target events.Target
	named  bool // there is a target
	dry    bool // store nothing

	session.Session // without trust until the registry has answered
	denials         denials
	streams         map[string]jetstream.Stream        // the streams that exist
	readers         map[string]*jetstream.ConsumerInfo // the durables of the stream of events
	// The result of a question to each process, by its program.
	answers map[string]error
	clock   clockReading
	service events.ServiceRecord // of target; zero: not known
	swept   time.Duration        // the age of storage probes that a killed doctor left behind
	saved   *keychange.SavedKeys // of omi rotate --dry-run --new-key; nil: the flag was not given
	checks  []check
}

func newDoctor(c *Config, t events.Target, named bool) *doctor {
	return &doctor{flags: c, target: t, named: named, swept: abandoned, streams: map[string]jetstream.Stream{}}
}

// Run makes every check that the flags ask for, and prints the report.
func Run(c Config) error {
	t, named, err := c.Target()
	if err != nil {
		return err
	}
	if err := c.Check(); err != nil {
		return err
	}
	d := newDoctor(&c, t, named)
	if err := d.run(func() {}); err != nil {
		return err
	}
	if wrong := d.count(stateWrong); wrong > 0 {
		return process.Refused(fmt.Errorf("%d of %d checks found something wrong", wrong, len(d.checks)))
	}
	return nil
}

// run makes every check, then those that more adds, and prints the report, unless a signal comes
// first. An error means that there is no broker.
func (d *doctor) run(more func()) error {
	ctx, stop := signal.NotifyContext(context.Background(), process.StopSignals()...)
	defer stop()
	unreachable := d.examine(ctx)
	if ctx.Err() != nil {
		return process.Unreachable(errors.New("interrupted before every check was made"))
	}
	if unreachable == nil {
		more()
	}
	return cmp.Or(printReport(d.flags.JSON, d.checks), unreachable)
}

// examine makes the checks that are possible. An error means that there is no broker.
func (d *doctor) examine(ctx context.Context) error {
	key := d.examineKeyFiles()
	log := process.NewLog(os.Stderr, slog.LevelError)
	connecting, cancel := context.WithTimeout(ctx, d.flags.Timeout)
	defer cancel()
	nc, err := d.flags.ConnectNow(connecting, "omi doctor", log)
	if err != nil {
		fix := "start the broker, or name another with --nats-url; a firewall in between looks the same"
		if process.ExitCode(err) == process.ExitUsage {
			fix = "give it what it asks for: ask the operator of the broker"
		}
		d.wrong("broker", err.Error(), fix)
		return err
	}
	defer process.Close(nc, log)
	d.Conn = nc
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { d.denials.heard(err) })
	if d.JetStream, err = jetstream.New(nc); err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	if !d.examineBroker() {
		return nil // no answer could reach us
	}
	d.askProcesses(ctx)
	if d.examineJetStream(ctx) {
		d.examineStreams(ctx)
		d.examineStorage(ctx)
		d.examineDurables(ctx)
	}
	d.examineRegistry()
	d.examineTrusts()
	d.examineServices()
	d.examinePermissions(ctx)
	d.examineService(ctx)
	d.examineClock()
	d.examineKey(ctx, key)
	return nil
}

func (d *doctor) note(name string, state state, detail, fix string) {
	d.checks = append(d.checks, check{name, state, detail, fix})
}

func (d *doctor) ok(name, format string, args ...any) {
	d.note(name, stateOK, fmt.Sprintf(format, args...), "")
}

func (d *doctor) warn(name, detail, fix string)  { d.note(name, stateWarning, detail, fix) }
func (d *doctor) wrong(name, detail, fix string) { d.note(name, stateWrong, detail, fix) }

func (d *doctor) count(state state) (n int) {
	for _, c := range d.checks {
		if c.State == state {
			n++
		}
	}
	return n
}

// printReport prints the checks.
func printReport(asJSON bool, checks []check) error {
	ok := true
	for _, one := range checks {
		ok = ok && one.State != stateWrong
	}
	if asJSON {
		return process.PrintJSON(struct {
			Checks []check `json:"checks"`
			OK     bool    `json:"ok"`
		}{checks, ok})
	}
	var text strings.Builder
	for _, one := range checks {
		printable.Fprintf(&text, "%-8s %-26s %s\n", one.State, one.Name, one.Detail)
		if one.Fix != "" {
			printable.Fprintf(&text, "%-8s %-26s   fix: %s\n", "", "", one.Fix)
		}
	}
	return process.Print("%s", &text)
}
