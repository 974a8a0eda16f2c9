package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/request"
	"omiappreg.org/keyrotation/registry"
)

const (
	demoApp     = "org.omiappreg.demo.shop.7f8a9d"
	demoService = "cms-article-77"
	demoOther   = "crm-3"
	demoOrigin  = "omiappreg.org"
	// demoGrace is short enough to watch a grace period end, and long enough to see that a key is in it.
	demoGrace   = 3 * time.Second
	demoPause   = 300 * time.Millisecond
	demoTimeout = 60 * time.Second
)

type demoCmd struct {
	JSON bool `help:"Print one JSON object at the end, and nothing else."`
}

// Run shows the whole path, and fails if anybody was refused who should pass, or passed who should be refused.
func (c *demoCmd) Run() error {
	folder, err := os.MkdirTemp("", "omi-demo-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	var out io.Writer = os.Stdout
	if c.JSON {
		out = io.Discard
	}
	d := newDemo(out)
	if err := d.start(folder); err != nil {
		return err
	}
	defer d.stack.Close()
	finished := false
	err = process.Run(d.log, append(d.stack.actors(), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, demoTimeout)
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
	}
	if refused, accepted := d.tally.wronglyRefused.Load(), d.tally.wronglyAccepted.Load(); err == nil && refused+accepted > 0 {
		err = process.Refused(fmt.Errorf("wrongly refused: %d, wrongly accepted: %d (%s)", refused, accepted, d.tally.example()))
	}
	return err
}

// demo is one performance.
type demo struct {
	out     io.Writer
	log     *slog.Logger
	began   time.Time
	target  events.Target
	master  events.SigningKey
	stack   *stack
	session *session
	marks   chan mark
	clients *clients
	tally   *tally
	last    request.Message // the last rotation, as it was sent

	sequence  int64
	rotations int
	resets    int
	rejected  map[string]int
	repeated  int
	applied   []time.Duration // from publish to applied by both
}

func newDemo(out io.Writer) *demo {
	app, _ := events.ParseAppID(demoApp)
	service, _ := events.ParseServiceID(demoService)
	t := &tally{}
	return &demo{
		out: out, log: process.NewLog(os.Stderr, slog.LevelError), began: time.Now(),
		target: events.Target{App: app, Service: service}, master: events.GenerateSigningKey(),
		marks: make(chan mark, 4096), tally: t, clients: newClients(t), rejected: map[string]int{},
	}
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%7.3f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// start brings up broker, registry, Auth and Billing.
func (d *demo) start(folder string) (err error) {
	d.say("starting a broker, the registry, Auth and Billing in %s", folder)
	d.stack, err = newStack(context.Background(), stackConfig{
		Folder: folder, NATSAddr: "127.0.0.1:0", Log: d.log,
		Policy:         registry.Policy{Origin: demoOrigin, GracePeriod: demoGrace},
		Apps:           []registry.App{{AppID: d.target.App, MasterPublicKey: d.master.Public()}},
		Committed:      d.marker(committed),
		AuthApplied:    d.marker(appliedByAuth),
		BillingApplied: d.marker(appliedByBilling),
	})
	return err
}

// play is the script.
func (d *demo) play(ctx context.Context) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	d.say("all are up; the registry signs with %s", d.stack.key.Public())
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
	}
	d.clients.stop()
	return nil
}

// open waits until everything is up, and connects the demo's own client.
func (d *demo) open(ctx context.Context) error {
	nc, _, err := d.stack.connect("omi-demo", d.log)
	if err != nil {
		return err
	}
	if err := d.stack.awaitHealthy(ctx); err != nil {
		return err
	}
	if d.session, err = openSession(ctx, nc, []string{d.stack.key.Public().String()}); err != nil {
		return err
	}
	return d.observe()
}

func (d *demo) bind(ctx context.Context) error {
	fmt.Fprintf(d.out, "\nBinding %s to its first key, signed by the developer's Master Key\n", d.target)
	_, err := d.change(ctx, newDraft(events.Binding, d.target), d.master)
	return err
}

func (d *demo) startClients(ctx context.Context) error {
	d.clients.start(ctx, d.session, d.target)
	fmt.Fprintf(d.out, "\n%d clients sign and Auth verifies, from now on and without a pause;\n"+
		"an intruder tries keys that have ended, or never were\n", clientCount)
	return d.pause(ctx)
}

// rotate changes the key as a service should: it goes on with the old one until everyone knows the new one.
func (d *demo) rotate(ctx context.Context) error {
	d.rotations++
	fmt.Fprintf(d.out, "\nRotation %d, signed by the current key\n", d.rotations)
	receipt, err := d.change(ctx, newDraft(events.Rotation, d.target), d.clients.key())
	if err != nil {
		return err
	}
	if err := d.awaitPropagation(ctx); err != nil {
		return err
	}
	old := d.clients.switchTo(d.keyOf(receipt))
	d.clients.endsAt(old, receipt.GracePeriodExpiry)
	answer, err := d.clients.verify(ctx, old)
	if err != nil {
		return err
	}
	d.say("the old key is in grace: Auth says %s, key: %s, until %s", answer.Result, answer.Key, clock(answer.Expires))
	return d.pause(ctx)
}

func (d *demo) rotateAndWatchTheOldKeyEnd(ctx context.Context) error {
	old := d.clients.key()
	if err := d.rotate(ctx); err != nil {
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

// emergency ends the old key with the commit. Nobody may be left who signs with it, so the clients hold for the
// moment that it takes.
func (d *demo) emergency(ctx context.Context) error {
	d.rotations++
	fmt.Fprintf(d.out, "\nRotation %d, an emergency: no grace period\n", d.rotations)
	draft := newDraft(events.Rotation, d.target)
	draft.GracePeriod = new(int64)
	return d.replaceAtOnce(ctx, draft, d.clients.key())
}

func (d *demo) masterReset(ctx context.Context) error {
	d.resets++
	fmt.Fprint(d.out, "\nThe key is lost: a Master Reset, signed by the developer's Master Key\n")
	return d.replaceAtOnce(ctx, newDraft(events.Reset, d.target), d.master)
}

func (d *demo) replaceAtOnce(ctx context.Context, draft events.Draft, by events.SigningKey) error {
	old := d.clients.hold()
	began := time.Now()
	receipt, err := d.change(ctx, draft, by)
	if err != nil {
		d.clients.release(old)
		return err
	}
	d.clients.release(d.keyOf(receipt))
	d.clients.endsAt(old, receipt.GracePeriodExpiry)
	answer, err := d.clients.verify(ctx, old)
	if err != nil {
		return err
	}
	d.say("the clients held for %s; the old key: Auth says %s, reason: %s", time.Since(began).Round(time.Millisecond), answer.Result, answer.Reason)
	return d.pause(ctx)
}

// check lets the operator's checker look at what the demo left.
func (d *demo) check(ctx context.Context) error {
	trust := d.session.trust
	report, err := d.stack.store.Check(ctx, &trust, time.Now())
	if err != nil {
		return err
	}
	if len(report.Violations) > 0 {
		return fmt.Errorf("the registry's database violates what must always hold: %v", report.Violations)
	}
	return nil
}

func (d *demo) pause(ctx context.Context) error { return d.pauseFor(ctx, demoPause) }

func (d *demo) pauseFor(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}
