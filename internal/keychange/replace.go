package keychange

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

// waitPropagated is a value of --wait; the other one is committed.
const waitPropagated = "propagated"

// StoreFlags name the key store of a service whose key changes.
type StoreFlags struct {
	Key  string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The key's file, or the folder of its key store; gets the new key."`
	Wait string `enum:"committed,propagated" default:"committed" help:"Wait until the change is committed (the default) or propagated."`
}

// SavedFlags are for a new key that is saved elsewhere before anything is sent.
type SavedFlags struct {
	NewKey     string `placeholder:"FILE" help:"Change to the key in FILE, which you made and saved beforehand."`
	BeforeSend string `placeholder:"CMD" help:"Command that saves $OMI_NEW_KEY_FILE before anything is sent (sh -c)."`
}

// Rotation is what `omi rotate` asks for: its grammar.
type Rotation struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
	StoreFlags          `embed:""`
	SavedFlags          `embed:""`
	GracePeriod         *time.Duration `xor:"grace" placeholder:"300s" help:"How long the old key stays valid, at most the registry's own period."`
	Emergency           bool           `xor:"grace" help:"The key may be stolen: end it and every earlier key at once."`
	JWKS                bool           `name:"jwks" help:"With --wait propagated: wait until no cache has an older JWK Set."`
	DryRun              bool           `help:"Check everything; send nothing and write nothing."`
}

// Help is shown by --help.
func (*Rotation) Help() string {
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

// Prepared returns what the flags ask for, if they go together.
func (c *Rotation) Prepared() (t events.Target, grace *time.Duration, err error) {
	if t, err = c.Target(); err != nil {
		return t, nil, err
	}
	if grace, err = c.grace(); err != nil {
		return t, nil, err
	}
	if c.JWKS && c.Wait != waitPropagated && !c.DryRun && !isZero(grace) {
		err = process.Usagef("--jwks needs --wait propagated: the file holds the old key until no cache has an older JWK Set")
	}
	return t, grace, err
}

// Run rotates a service's key.
func (c Rotation) Run() error {
	t, grace, err := c.Prepared()
	if err != nil {
		return err
	}
	saved, err := c.SavedKey(c.Key, events.Rotation)
	if err == nil && saved == nil {
		err = cmp.Or(c.Readable(), c.replaceable())
	}
	if err != nil {
		return err
	}
	change := &change{
		Connection: c.Connection, StoreFlags: c.StoreFlags, target: t, kind: events.Rotation, grace: grace, atOnce: isZero(grace), jwks: c.JWKS,
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
	return run(change)
}

// isZero reports whether a grace period is given and is 0.
func isZero(grace *time.Duration) bool { return grace != nil && *grace == 0 }

func (c *Rotation) grace() (*time.Duration, error) {
	if c.Emergency {
		return new(time.Duration), nil
	}
	if c.GracePeriod != nil && (*c.GracePeriod < 0 || *c.GracePeriod%time.Second != 0) {
		return nil, process.Usagef("--grace-period is whole seconds, 0 or more, not %s", *c.GracePeriod)
	}
	return c.GracePeriod, nil
}

// Readable says what is wrong with the key, before the command waits for the broker.
func (f *StoreFlags) Readable() error {
	if _, err := os.Lstat(client.JournalFile(f.Key)); err == nil {
		return nil // a change that continues may have made the key
	}
	_, err := session.ServiceKey(f.Key)
	return err
}

// replaceable says why the new key could not replace the old one, before the command waits for the
// broker.
func (f *StoreFlags) replaceable() error {
	if err := keyfile.Replaceable(client.KeyFile(f.Key)); err != nil {
		return process.Usagef("--key: %w", err)
	}
	return nil
}

// Reset is what `omi reset` asks for: its grammar.
type Reset struct {
	session.Connection `embed:""`
	DeveloperFlags     `embed:""`
	StoreFlags         `embed:""`
	SavedFlags         `embed:""`
}

// Help is shown by --help.
func (*Reset) Help() string {
	return `All earlier keys of the service end at once, so a thief has nothing. The new key is made in
--key, which need not exist. If it exists, it must hold a key of this service; a key of another
service is never overwritten. After a crash, run the same command again. Only verifiers that use the
service's JWK Set still accept an earlier key, for as long as they may keep a set: 60 s by default
(docs/jwks.md).

  omi reset --app-id org.example.shop --service-id cms --master-key master.pem --key cms.pem

A key that is kept elsewhere must be saved before anything is sent: see --new-key and --before-send
in omi rotate --help.`
}

// Run resets a service. After a crash, the same command continues.
func (c Reset) Run() error {
	t, master, err := c.read()
	if err != nil {
		return err
	}
	old, err := c.replaced(master)
	if err != nil {
		return err
	}
	saved, err := c.SavedKey(c.Key, events.Reset)
	switch {
	case err == nil && saved == nil:
		err = c.replaceable()
	case err == nil && saved.New.Public() == master.Public():
		err = process.Usagef("--new-key: %s holds the Master Key itself: name the file of another key", c.NewKey)
	}
	if err != nil {
		return err
	}
	return run(&change{
		Connection: c.Connection, StoreFlags: c.StoreFlags, target: t, kind: events.Reset, atOnce: true,
		saved: saved, beforeSend: c.BeforeSend,
		fits: func(ctx context.Context, s *session.Session) error {
			if old.IsZero() {
				return nil
			}
			return c.owned(ctx, s, t, old)
		},
		done: "reset", ended: "all earlier keys have ended",
		ask: func(ctx context.Context, k *client.Client) (events.Receipt, error) {
			return k.Reset(ctx, master.Private())
		},
	})
}

// replaced returns the key that the new one replaces, if there is one. A file that can't be read
// may be a key in another form.
func (c *Reset) replaced(master events.SigningKey) (old events.PublicKey, err error) {
	key, err := keyfile.Read(client.KeyFile(c.Key))
	switch {
	case errors.Is(err, keyfile.ErrMissing):
		return old, nil
	case errors.Is(err, keyfile.ErrFormat):
		return old, process.Usagef("--key: %w; a reset doesn't need it: move it away, or name a file that does not exist yet", err)
	case err != nil:
		return old, process.Usagef("--key: %w", err)
	}
	return key.Public(), notMaster(c.Key, key, master)
}

// owned refuses to replace the key of another service, of the registry or of a developer.
func (c *Reset) owned(ctx context.Context, s *session.Session, t events.Target, old events.PublicKey) error {
	asking, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	history, err := s.History(asking, t)
	if errors.Is(err, registryclient.ErrUnknownService) {
		return err
	}
	if err != nil {
		return fmt.Errorf("ask whose key is in %s, which the new one would replace: %w", client.KeyFile(c.Key), err)
	}
	if !slices.ContainsFunc(history.Keys, func(k events.HistoryKey) bool { return k.PublicKey == old }) {
		return process.Usagef("--key: %s holds %s, which never was a key of %s and would be overwritten: name that service's file, "+
			"or one that does not exist yet", client.KeyFile(c.Key), old, t)
	}
	return nil
}

// notMaster refuses the developer's own key as a service's key.
func notMaster(path string, key, master events.SigningKey) error {
	if key.Public() == master.Public() {
		return process.Usagef("--key: %s holds the Master Key itself: name another file, which need not exist yet", client.KeyFile(path))
	}
	return nil
}
