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
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

// Config is what `omi doctor` looks at: its grammar.
type Config struct {
	session.Connection     `embed:""`
	session.OptionalTarget `embed:""`
	Key                    string `env:"OMI_KEY" placeholder:"FILE" help:"A service's key: check its file, and what the registry says of it."`
	MasterKey              string `env:"OMI_MASTER_KEY" placeholder:"FILE" help:"A developer's Master Key: check its file, and whether it may bind."`
}

// Help is shown by --help.
func (*Config) Help() string {
	return `Checks the broker, its streams and their consumers, the registry, Auth and Billing, the
clock and what this account may do. With --app-id, --service-id and --key it also checks one service
and its key. Each line is ok, a warning, or wrong. Exit code 1: something is wrong. Exit code 3:
there is no broker.

  omi doctor --trust ed25519:…
  omi doctor --trust ed25519:… --app-id org.example.dev --service-id cms --key cms.pem

It leaves nothing behind. To see whether the broker can store, it makes a stream of its own, stores
one message and deletes the stream. To see what an account may publish, it sends messages that the
stream refuses.`
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
func (c *Config) Run() error {
	t, named, err := c.Target()
	if err != nil {
		return err
	}
	if err := c.Check(); err != nil {
		return err
	}
	d := newDoctor(c, t, named)
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

// DryRun checks everything that a rotation needs, as omi doctor does, and makes the request with a
// new key that it does not keep. It sends nothing and writes nothing.
func DryRun(c keychange.Rotation) error {
	t, grace, err := c.Prepared()
	if err != nil {
		return err
	}
	if err := errors.Join(c.Check(), c.Readable()); err != nil {
		return err
	}
	d := newDoctor(&Config{Connection: c.Connection, Key: c.Key}, t, true)
	d.dry = true
	if d.saved, err = c.SavedKey(c.Key, events.Rotation); err != nil {
		return err
	}
	if err := d.run(func() {
		d.examineStore(c.Key)
		d.examineRequest(&c, grace)
	}); err != nil {
		return err
	}
	if wrong := d.count(stateWrong); wrong > 0 {
		return process.Refused(fmt.Errorf("nothing was sent; fix this before you rotate: %d of %d checks found something wrong", wrong, len(d.checks)))
	}
	if !c.JSON {
		return process.Print("Nothing was sent. The same command without --dry-run rotates the key.\n")
	}
	return nil
}

// examineStore checks whether the key store can be written. It opens only existing files, so it
// creates nothing.
func (d *doctor) examineStore(path string) {
	const name = "key store"
	if d.saved != nil && d.saved.OnlyRead() {
		d.ok(name, "%s is only read: %s", d.saved.File, d.saved.ReadOnly)
		return
	}
	file := client.KeyFile(path)
	if keyfile.Replaceable(file) != nil {
		return // examineKeyFiles has reported it
	}
	folder := filepath.Dir(file)
	if err := keyfile.Writable(folder); err != nil {
		d.wrong(name, fmt.Sprintf("%s: the new key can't be written in it: %v", folder, err), "let this user write there, or run this as a user who may")
		return
	}
	if _, err := os.Lstat(client.LockFile(path)); err == nil {
		if err := lockable(context.Background(), path); err != nil {
			d.wrong(name, err.Error(), "if a service has it open, it rotates by itself; otherwise wait for the other command")
			return
		}
	}
	d.ok(name, "%s can be written", folder)
}

// lockable returns an error if another process changes the keys of a key store.
func lockable(ctx context.Context, path string) error {
	store, err := client.OpenFile(path)
	if err != nil {
		return err
	}
	release, err := store.TryLock(ctx)
	if err != nil {
		return err
	}
	return release()
}

// examineRequest makes the request, and compares its grace period with the registry's.
func (d *doctor) examineRequest(c *keychange.Rotation, grace *time.Duration) {
	const name = "request"
	if _, err := os.Lstat(client.JournalFile(c.Key)); err == nil {
		return // a rotation would send that one again; it has a line of its own
	}
	by, err := session.ServiceKey(c.Key)
	if err != nil {
		return // the key file's own line says so
	}
	next := events.GenerateSigningKey()
	if d.saved != nil {
		if next = d.saved.New; d.service.Current.PublicKey == next.Public() {
			d.ok(name, "none: the new key is the service's current key already")
			return
		}
	}
	if detail, fix := refusedFor(&d.service, by.Public()); detail != "" {
		d.wrong(name, detail, fix)
		return
	}
	draft := session.NewDraft(events.Rotation, d.target)
	draft.Origin, draft.EndEarlier = d.Info.Origin, c.Emergency
	period := time.Duration(d.Info.GracePeriod) * time.Second
	if grace != nil {
		seconds := int64(*grace / time.Second)
		draft.GracePeriod = &seconds
		if *grace > period {
			d.wrong(name, fmt.Sprintf("a grace period of %s, and the registry's own is %s", *grace, period), "ask for less, or omit --grace-period")
			return
		}
		period = *grace
	}
	if kept := time.Duration(d.Info.JWKSMaxAge) * time.Second; c.JWKS && period > 0 && draft.GracePeriod != nil && *draft.GracePeriod < d.Info.JWKSGrace() {
		d.wrong(name, fmt.Sprintf("a grace period of %s: caches may keep the previous JWK Set for %s, and half of the period is over by then", period, kept),
			fmt.Sprintf("ask for %ds or more, or omit --grace-period", d.Info.JWKSGrace()))
		return
	}
	m, err := registryclient.Sign(draft, by.Private(), next.Private())
	if err != nil {
		d.wrong(name, err.Error(), "fix what it says")
		return
	}
	d.ok(name, "%d bytes to %s; %s", len(m.Payload), m.Subject, graceOf(&d.service, period, c.Emergency))
}

// refusedFor says why the registry would now refuse a rotation that this key signs, by
// the service's record, and what to do. It says nothing if the record is not known, because another
// line does.
func refusedFor(r *events.ServiceRecord, by events.PublicKey) (detail, fix string) {
	current := r.Current.PublicKey
	switch {
	case r.Status == events.Revoked:
		return "the registry would refuse it (unknown_service): the service was revoked", "omi bind it again, with a key that was never used"
	case !current.IsZero() && current != by:
		return "the registry would refuse it: only the service's current key may sign it, " + current.String(),
			"see the key above; if you don't have the current key, omi reset gives the service a new one"
	case r.NextRotationAt > r.Timestamp:
		left := time.Duration(r.NextRotationAt-r.Timestamp) * time.Second
		return "the registry would refuse it (rate_limited): the service has used up its rotations for this minute",
			fmt.Sprintf("try again in %s, at %s", left, printable.Date(r.NextRotationAt))
	}
	return "", ""
}

// graceOf says which keys would still be accepted.
func graceOf(r *events.ServiceRecord, period time.Duration, emergency bool) string {
	text, earlier := fmt.Sprintf("the old key would be in grace for %s", period), len(r.Grace)
	switch {
	case emergency:
		text = "the old key would end at once, and so would those in grace: " + strconv.Itoa(earlier)
	case period == 0 && earlier > 0:
		text += ", and those already in grace would stay so: " + strconv.Itoa(earlier) + "; --emergency ends them too"
	}
	return text
}
