package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/pin"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// The values of --wait.
const (
	waitCommitted  = "committed"
	waitPropagated = "propagated"
)

// storeFlags name the key store of a service whose key changes.
type storeFlags struct {
	Key  string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The key's file, or the folder of its key store; gets the new key."`
	Wait string `enum:"committed,propagated" default:"committed" help:"Wait until the change is committed (the default) or propagated."`
}

// savedFlags are for a new key that is saved elsewhere before anything is sent.
type savedFlags struct {
	NewKey     string `placeholder:"FILE" help:"Change to the key in FILE, which you made and saved beforehand."`
	BeforeSend string `placeholder:"CMD" help:"Command that saves $OMI_NEW_KEY_FILE before anything is sent (sh -c)."`
}

type rotateCmd struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
	storeFlags          `embed:""`
	savedFlags          `embed:""`
	GracePeriod         *time.Duration `xor:"grace" placeholder:"300s" help:"How long the old key stays valid, at most the registry's own period."`
	Emergency           bool           `xor:"grace" help:"The key may be stolen: end it and every earlier key at once."`
	JWKS                bool           `name:"jwks" help:"With --wait propagated: wait until no cache has an older JWK Set."`
	DryRun              bool           `help:"Check everything; send nothing and write nothing."`
}

// Help is shown by --help.
func (*rotateCmd) Help() string {
	return `The new key and the request are on the disk before anything is sent. After a crash, run the
same command again: it sends the same bytes, and the registry gives the same answer.

  omi rotate --app-id org.example.shop --service-id cms --key cms.pem
  omi rotate --app-id org.example.shop --service-id cms --key cms.pem --wait propagated
  omi rotate --app-id org.example.shop --service-id cms --key cms.pem --dry-run

  --wait            propagated: until every core service has applied the change, and each is shown
                    when it has, or until half of the grace period is over (2 s if the old key ends
                    at once). The file holds the old key until then
  --jwks            for a service that others verify by its JWK Set: the file also holds the old key
                    until no cache has an older set
  --grace-period    whole seconds; the default is the registry's own period. 0s ends the old key
                    alone, and keys in grace stay so
  --emergency       ends keys in grace, too

While a service (package client) has its key store open, it rotates by itself, and this command
refuses.

A key that is kept in a Secret or a vault must be saved there before anything is sent, because a job
can end at any time:

  omi keygen --out next.pem && save next.pem
  # may be repeated: it then says that it is done, and does not rotate again
  omi rotate … --key cms.pem --new-key next.pem
  omi rotate … --key cms.pem --before-send 'save "$OMI_NEW_KEY_FILE"'

The command of --before-send gets the file's name in OMI_NEW_KEY_FILE, and also OMI_NEW_PUBLIC_KEY,
OMI_APP_ID and OMI_SERVICE_ID. Its output goes to the standard error. If it fails, nothing is sent,
and the exit code is 1. The next run gives it the same key.`
}

// Run rotates a service's key.
func (c *rotateCmd) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	grace, err := c.grace()
	if err != nil {
		return err
	}
	if c.JWKS && c.Wait != waitPropagated && !c.DryRun && !isZero(grace) {
		return process.Usagef("--jwks needs --wait propagated: the file holds the old key until no cache has an older JWK Set")
	}
	if c.DryRun {
		return c.dryRun(t, grace)
	}
	saved, err := c.savedKey(c.Key, events.Rotation)
	if err == nil && saved == nil {
		err = cmp.Or(c.readable(), c.replaceable())
	}
	if err != nil {
		return err
	}
	change := &keyChange{
		Connection: c.Connection, storeFlags: c.storeFlags, target: t, kind: events.Rotation, grace: grace, atOnce: isZero(grace), jwks: c.JWKS,
		saved: saved, beforeSend: c.BeforeSend,
		done: "rotated", ended: "the old key has ended",
		ask: func(ctx context.Context, k *client.Client) (events.Receipt, error) {
			if grace == nil {
				return k.Rotate(ctx)
			}
			return k.RotateWithGrace(ctx, *grace)
		},
	}
	if c.Emergency {
		change.emergency, change.ended = true, "every earlier key has ended"
		change.ask = func(ctx context.Context, k *client.Client) (events.Receipt, error) { return k.RotateEmergency(ctx) }
	}
	return changeKey(change)
}

// isZero reports whether a grace period is given and is 0.
func isZero(grace *time.Duration) bool { return grace != nil && *grace == 0 }

func (c *rotateCmd) grace() (*time.Duration, error) {
	if c.Emergency {
		return new(time.Duration), nil
	}
	if c.GracePeriod != nil && (*c.GracePeriod < 0 || *c.GracePeriod%time.Second != 0) {
		return nil, process.Usagef("--grace-period is whole seconds, 0 or more, not %s", *c.GracePeriod)
	}
	return c.GracePeriod, nil
}

// readable says what is wrong with the key, before the command waits for the broker.
func (f *storeFlags) readable() error {
	if _, err := os.Lstat(client.JournalFile(f.Key)); err == nil {
		return nil // a change that continues may have made the key
	}
	_, err := session.ServiceKey(f.Key)
	return err
}

// replaceable says why the new key could not replace the old one, before the command waits for the
// broker.
func (f *storeFlags) replaceable() error {
	if err := keyfile.Replaceable(client.KeyFile(f.Key)); err != nil {
		return process.Usagef("--key: %w", err)
	}
	return nil
}

// keyChange is one command's change of a service's key.
type keyChange struct {
	session.Connection
	storeFlags
	target events.Target
	kind   events.RequestKind
	grace  *time.Duration // the one asked for; nil: the registry's own
	atOnce bool
	// emergency ends the keys that are in grace too.
	emergency bool
	jwks      bool       // wait for caches of the JWK Set
	saved     *savedKeys // of --new-key; nil: make a new key
	// Returns why the key store may not be used; nil: the registry decides.
	fits func(context.Context, *session.Session) error
	done string // what happened to the service
	// Which keys have ended, if the old key ends at once.
	ended string
	ask   func(context.Context, *client.Client) (events.Receipt, error)

	beforeSend string // a command

	began     time.Time
	applied   map[string]float64 // milliseconds from the start, by durable
	committed float64            // the same; 0: committed before this command
	sent      bool               // by this command
	settling  atomic.Bool        // the answer is there, and the new key is about to take its place
}

// changeKey opens the key store, continues what was under way there, makes the change unless that
// was it, and waits as --wait says.
func changeKey(c *keyChange) error {
	// The reader of the output may leave; that must not end a change halfway. The command of
	// --before-send doesn't inherit this.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return c.With(0, func(ctx context.Context, s *session.Session) error {
		store, err := c.store()
		if err != nil {
			return process.Usagef("--key: %w", err)
		}
		if c.fits != nil {
			if err := c.fits(ctx, s); err != nil {
				return err
			}
		}
		if err := pin.CheckRegistry(c.target, s.Trust.Origin()); err != nil {
			return err
		}
		if c.saved.sameKey() {
			return c.already(ctx, s)
		}
		if c.beforeSend != "" {
			held, release, err := c.save(ctx, store)
			if err != nil {
				return err
			}
			store = held
			defer func() { _ = release() }() // the process ends
		}
		c.began, c.applied = time.Now(), map[string]float64{}
		k, err := client.Open(ctx, client.Config{
			Target: c.target, Store: store, Conn: s.Conn, Trust: s.Trust, Notify: c.tell,
			KeyMayBeMissing: c.kind == events.Reset, JWKS: c.jwks, Exclusive: true,
		})
		if err != nil {
			return process.Usagef("--key: %w", err)
		}
		defer k.Close()
		receipt, err := c.change(ctx, s, k)
		if err != nil {
			return c.failed(receipt, err)
		}
		pin.Advance(c.target, receipt)
		if c.jwks && !c.atOnce && !c.JSON {
			say("  the old key signs until no cache has an older JWK Set: %s and a little more\n", s.KeptJWKS())
		}
		if err := c.settle(ctx, k); err != nil {
			return err
		}
		return c.report(ctx, s, receipt)
	})
}

// settle waits until the new key has taken its place: as soon as possible, or when every durable
// has applied the change.
func (c *keyChange) settle(ctx context.Context, k *client.Client) error {
	c.settling.Store(true)
	settle, bounded := k.Settle, ctx
	if c.Wait != waitPropagated {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		settle = k.Promote
	}
	if settle(bounded) == nil {
		return nil
	}
	const next = "the registry has committed the change, and %s still holds the old key; run the same command again to continue"
	if ctx.Err() != nil {
		return process.Unreachable(fmt.Errorf("interrupted: "+next, client.KeyFile(c.Key)))
	}
	return process.Refused(fmt.Errorf(next, client.KeyFile(c.Key))) // the failure was reported
}

// change returns the receipt of what was asked for, which may be the change that was under way.
func (c *keyChange) change(ctx context.Context, s *session.Session, k *client.Client) (events.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	kind, receipt, err := k.Resume(ctx)
	if kind != "" && err == nil && c.committed == 0 && !receipt.RequestNonce.IsZero() && !c.JSON {
		say("Continuing the change that was under way: the registry has committed it.\n")
	}
	atOnce := receipt.GracePeriodExpiry <= receipt.Timestamp
	switch {
	case errors.As(err, new(*client.RefusedError)):
		// It is over, and the new request asks for the same key.
	case err != nil:
		return receipt, err
	case kind == c.kind && c.emergency && c.leavesGrace(ctx, s):
		// As the request that was under way does.
	case c.kind == events.Reset && c.savesKey() && kind != "" && receipt.RequestNonce.IsZero():
		// The saved key is the current one, which a client takes for a rotation.
		return receipt, c.alreadyReset(ctx, s)
	case kind == c.kind && receipt.RequestNonce.IsZero() && (atOnce || !c.atOnce):
		c.tellCurrent()
		return receipt, nil
	case kind == c.kind && c.atOnce == atOnce:
		c.tellGrace(receipt)
		return receipt, nil
	}
	return c.ask(ctx, k)
}

// tellGrace says that the old key of the change that was under way stays valid for as long as that
// change asked for.
func (c *keyChange) tellGrace(receipt events.Receipt) {
	has := time.Duration(receipt.GracePeriodExpiry-receipt.Timestamp) * time.Second
	if c.grace != nil && has != *c.grace && !c.JSON {
		say("Its grace period is %s, as was asked for then. %s needs another rotation.\n", has, *c.grace)
	}
}

// tell shows each step as it happens. The client reports one after the other.
func (c *keyChange) tell(e client.Event) {
	after := float64(e.At.Sub(c.began).Microseconds()) / 1000
	switch e.Kind {
	case client.Requested:
		c.sent = true
	case client.Resumed:
		c.sent = true
		if !c.JSON {
			say("Continuing the request that was under way.\n")
		}
	case client.Committed:
		if !c.sent { // sent before this command
			return
		}
		c.committed = after
		c.line(after, "committed by the registry")
	case client.Applied:
		c.applied[e.Durable] = after
		c.line(after, "applied by "+e.Durable)
	case client.Tightened, client.Exposed, client.Redated:
		printable.Fprintf(os.Stderr, "omi: %v\n", e.Err)
	case client.Retrying:
		if c.settling.Load() { // before, it is the command's error if it stays so
			printable.Fprintf(os.Stderr, "omi: trying again: %v\n", process.Plain(e.Err))
		}
	}
}

func (c *keyChange) line(after float64, what string) {
	if c.Wait == waitPropagated && !c.JSON {
		say("  +%8.2f ms  %s\n", after, what)
	}
}

// say reports progress, and ignores write errors: the command's result is printed at the end, or
// its error is.
func say(format string, args ...any) { _ = process.Print(format, args...) }

// failed gives a client's error its exit code.
func (c *keyChange) failed(receipt events.Receipt, err error) error {
	if errors.As(err, new(*client.RefusedError)) {
		err = answer(c.Connection, receipt, "")
		if by := receipt.Reason; c.kind == events.Rotation && (by == events.InvalidSignature || by == events.SupersededKey) {
			err = fmt.Errorf("%w Whose is it? omi doctor %s --key %s", err, session.FlagsOf(c.target), c.Key)
		}
		return err
	}
	// The key was changed just now: withSession has asked, too.
	if errors.Is(err, client.ErrUntrusted) {
		return process.Refused(err)
	}
	if errors.Is(err, client.ErrShortGrace) {
		return process.Usagef("--grace-period: nothing was sent: %w", err)
	}
	for _, away := range []error{client.ErrNotStored, client.ErrNoAnswer, client.ErrNotBegun, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, away) {
			return session.Unanswered(err)
		}
	}
	return process.Usagef("--key: nothing was sent: %w", err)
}
