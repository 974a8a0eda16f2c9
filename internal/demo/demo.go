// Package demo is `omi demo`: it shows key rotation at work on a whole stack, while clients sign
// and an intruder tries keys that have ended.
package demo

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/stack"
	"omiappreg.org/keyrotation/registry"
)

const (
	appID          = "org.omiappreg.demo.shop.7f8a9d"
	serviceID      = "cms-article-77"
	otherServiceID = "crm-3"
	origin         = "omiappreg.org"
	// gracePeriod is short enough to watch it end, and long enough to see that a key is in it.
	gracePeriod = 3 * time.Second
	pauseAfter  = 300 * time.Millisecond
	playWithin  = 60 * time.Second
)

// Command is `omi demo` for a kong grammar.
type Command struct {
	JSON bool `help:"Print only one JSON object, at the end."`
}

// Help is shown by --help.
func (*Command) Help() string {
	return `Takes five seconds, and leaves nothing behind. Exit code 1: a signature was refused that
should pass, or passed that should be refused.

  omi demo`
}

// Run shows the whole path. It fails if a signature was refused that should pass, or passed that
// should be refused.
func (c *Command) Run() error {
	folder, err := os.MkdirTemp("", "omi-demo-")
	if err != nil {
		return process.Usagef("make a temporary folder: %w: choose another with TMPDIR", err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	// The reader of the output may leave, and there are keys to remove.
	signal.Ignore(syscall.SIGPIPE)
	out := &output{w: os.Stdout}
	if c.JSON {
		out.w = io.Discard
	}
	d := newDemo(out)
	d.folder = folder
	if err := d.start(); err != nil {
		return err
	}
	defer d.stop()
	finished := false
	err = process.Run(d.log, append(d.stack.Actors(), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, playWithin)
		defer cancel()
		if err := d.play(ctx); err != nil {
			return err
		}
		finished = true
		return nil
	})...)
	switch {
	case err != nil:
		return err
	case !finished:
		return errors.New("stopped before its end")
	case c.JSON:
		err = process.PrintJSON(d.result())
	default:
		d.summary()
		err = d.out.err
	}
	if refused, accepted := d.tally.wronglyRefused.Load(), d.tally.wronglyAccepted.Load(); err == nil && refused+accepted > 0 {
		err = process.Refused(fmt.Errorf("wrongly refused: %d, wrongly accepted: %d (%s)", refused, accepted, d.tally.example()))
	}
	return err
}

// output remembers that writing failed: then there is nothing more to show.
type output struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("print: %w", err)
	}
	return n, err
}

// demo is one performance.
type demo struct {
	out     *output
	folder  string
	log     *slog.Logger
	began   time.Time
	target  events.Target
	master  events.SigningKey
	stack   *stack.Stack
	session *session.Session
	marks   chan mark
	clients *clients
	tally   *tally

	store     *client.Folder // of the service
	client    *client.Client
	heard     atomic.Int64       // durables that have applied the last change, as the client knows
	overheard *nats.Subscription // what anyone may hear

	sequence  int64
	rotations int
	resets    int
	rejected  map[string]int
	repeated  int
	applied   []time.Duration // from publish to applied by both
}

func newDemo(out *output) *demo {
	app, _ := events.ParseAppID(appID)
	service, _ := events.ParseServiceID(serviceID)
	t := &tally{}
	return &demo{
		out: out, log: process.NewLog(os.Stderr, slog.LevelError), began: time.Now(),
		target: events.Target{App: app, Service: service}, master: events.GenerateSigningKey(),
		marks: make(chan mark, 4096), tally: t, clients: newClients(t), rejected: map[string]int{},
	}
}

func (d *demo) say(format string, args ...any) {
	printable.Fprintf(d.out, "%7.3f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// start brings up broker, registry, Auth and Billing.
func (d *demo) start() (err error) {
	d.say("starting a broker, the registry, Auth and Billing in %s", d.folder)
	d.stack, err = stack.Open(context.Background(), stack.Config{
		Folder: d.folder, NATSAddr: "127.0.0.1:0", Log: d.log,
		Policy:         registry.Policy{Origin: origin, GracePeriod: gracePeriod},
		Apps:           []registry.App{{AppID: d.target.App, MasterPublicKey: d.master.Public()}},
		Committed:      d.marker(committed),
		AuthApplied:    d.marker(appliedByAuth),
		BillingApplied: d.marker(appliedByBilling),
	})
	return err
}

func (d *demo) stop() {
	if d.client != nil {
		d.client.Close()
	}
	if d.store != nil {
		_ = d.store.Close() // its folder is removed next
	}
	d.stack.Close()
}

// play is the script.
func (d *demo) play(ctx context.Context) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	d.say("everything is up; the registry signs with %s", d.stack.Key.Public())
	scenes := []func(context.Context) error{
		d.bind,
		d.startClients,
		d.rotateAndWatchTheOldKeyEnd,
		d.rotate,
		d.rotate,
		d.badRequests,
		d.emergency,
		d.masterReset,
		d.check,
	}
	for _, scene := range scenes {
		if err := scene(ctx); err != nil {
			return err
		}
		if d.out.err != nil {
			return d.out.err
		}
	}
	d.clients.stop()
	return nil
}

// open waits until everything is up, and connects the demo's own client.
func (d *demo) open(ctx context.Context) error {
	nc, _, err := d.stack.Connect("omi-demo", d.log)
	if err != nil {
		return err
	}
	if err := d.stack.AwaitHealthy(ctx); err != nil {
		return err
	}
	if d.session, err = session.Open(ctx, nc, process.Trust{Keys: []string{d.stack.Key.Public().String()}}); err != nil {
		return err
	}
	return d.observe()
}

// bind gives the service its first key, and opens its client.
func (d *demo) bind(ctx context.Context) (err error) {
	printable.Fprintf(d.out, "\nBinding %s to its first key, signed by the developer's Master Key\n", d.target)
	if d.store, err = client.OpenFolder(filepath.Join(d.folder, "keys")); err != nil {
		return err
	}
	key, err := d.store.Generate(ctx, client.Current)
	if err != nil {
		return err
	}
	draft := session.NewDraft(events.Binding, d.target)
	draft.Origin = d.session.Trust.Origin()
	m, err := registryclient.Sign(draft, d.master.Private(), key)
	if err != nil {
		return err
	}
	_, err = d.change(ctx, func(ctx context.Context) (events.Receipt, error) {
		d.told(client.Event{Kind: client.Requested, At: time.Now()})
		return d.session.Sender().Send(ctx, d.target, m, func() { d.told(client.Event{Kind: client.Stored, At: time.Now()}) })
	})
	if err != nil {
		return err
	}
	d.client, err = client.Open(ctx, client.Config{Target: d.target, Store: d.store, Conn: d.session.Conn, Trust: d.session.Trust, Notify: d.told})
	return err
}

func (d *demo) startClients(ctx context.Context) error {
	d.clients.start(ctx, d.session, d.target, d.client.Signer())
	printable.Fprintf(d.out, "\nFrom now on, %d clients sign and Auth verifies, without a pause;\n"+
		"an intruder tries keys that have ended, or never existed.\n", clientCount)
	return d.pause(ctx)
}

// rotate changes the key as a service does: its client signs with the old key until all durables
// know the new one.
func (d *demo) rotate(ctx context.Context) error {
	_, err := d.rotateFrom(ctx)
	return err
}

func (d *demo) rotateFrom(ctx context.Context) (old crypto.Signer, err error) {
	d.rotations++
	printable.Fprintf(d.out, "\nRotation %d, signed by the current key\n", d.rotations)
	if old, err = d.changeKey(ctx, d.client.Rotate); err != nil {
		return nil, err
	}
	why := "every durable has applied it"
	if d.heard.Load() < 2 {
		why = "half of the grace period is over"
	}
	d.say("%s: the clients sign with the new key now", why)
	answer, err := d.clients.verify(ctx, old)
	if err != nil {
		return nil, err
	}
	d.say("the old key is in grace: Auth says %s, key: %s, until %s", answer.Result, answer.Key, printable.Date(answer.Expires))
	return old, d.pause(ctx)
}

func (d *demo) rotateAndWatchTheOldKeyEnd(ctx context.Context) error {
	old, err := d.rotateFrom(ctx)
	if err != nil {
		return err
	}
	for {
		answer, err := d.clients.verify(ctx, old)
		if err != nil {
			return err
		}
		if answer.Result == events.Refused {
			d.say("the old key has ended: Auth says %s, reason: %s", answer.Result, answer.Reason)
			return nil
		}
		if err := d.pauseFor(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// emergency ends every earlier key with the commit.
func (d *demo) emergency(ctx context.Context) error {
	d.rotations++
	printable.Fprintf(d.out, "\nRotation %d, an emergency: every earlier key ends at once\n", d.rotations)
	return d.replaceAtOnce(ctx, d.client.RotateEmergency)
}

func (d *demo) masterReset(ctx context.Context) error {
	d.resets++
	fmt.Fprint(d.out, "\nThe key is lost: a Master Reset, signed by the developer's Master Key\n")
	return d.replaceAtOnce(ctx, func(ctx context.Context) (events.Receipt, error) { return d.client.Reset(ctx, d.master.Private()) })
}

// replaceAtOnce makes a change that ends the old key with the commit. The service's client signs
// nothing meanwhile. A signature that was made before and is checked after is refused, as it should
// be, so the clients have nothing under way.
func (d *demo) replaceAtOnce(ctx context.Context, ask func(context.Context) (events.Receipt, error)) error {
	d.clients.hold()
	began := time.Now()
	old, err := d.changeKey(ctx, ask)
	d.clients.release()
	if err != nil {
		return err
	}
	answer, err := d.clients.verify(ctx, old)
	if err != nil {
		return err
	}
	d.say("the clients waited for %s; the old key: Auth says %s, reason: %s", time.Since(began).Round(time.Millisecond), answer.Result, answer.Reason)
	return d.pause(ctx)
}

// check runs the operator's checker on the demo's database.
func (d *demo) check(ctx context.Context) error {
	trust := d.session.Trust
	report, err := d.stack.Store.Admin().Check(ctx, &trust, time.Now())
	if err != nil {
		return err
	}
	if len(report.Violations) > 0 {
		return fmt.Errorf("the registry's database violates what must always hold: %v", report.Violations)
	}
	return nil
}

func (d *demo) pause(ctx context.Context) error { return d.pauseFor(ctx, pauseAfter) }

func (d *demo) pauseFor(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}
