package keychange

import (
	"cmp"
	"context"
	"os"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
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

// Rotation is what `omi rotate` asks for.
type Rotation struct {
	session.Connection
	session.TargetFlags
	StoreFlags
	SavedFlags
	GracePeriod *time.Duration // nil: the registry's own
	Emergency   bool
	JWKS        bool
	DryRun      bool
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
