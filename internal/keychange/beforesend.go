package keychange

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
)

// lockedStore is a key store whose lock this process has.
type lockedStore struct{ client.KeyStore }

// save runs --before-send. The new key is on the disk by then, and no other process changes the
// keys.
func (c *change) save(ctx context.Context, store client.KeyStore) (locked client.KeyStore, release func() error, err error) {
	release = func() error { return nil }
	if lock, ok := store.(client.Locker); ok {
		if release, err = lock.TryLock(ctx); err != nil {
			return nil, nil, process.Usagef("--key: %w", err)
		}
	}
	key, err := store.Signer(ctx, client.Pending)
	if errors.Is(err, client.ErrNoKey) {
		key, err = store.Generate(ctx, client.Pending)
	}
	if err == nil {
		err = c.runBeforeSend(ctx, key)
	} else {
		err = process.Usagef("--key: nothing was sent: %w", err)
	}
	if err != nil {
		return nil, nil, errors.Join(err, release())
	}
	return lockedStore{store}, release, nil
}

// endBeforeSend is how long --before-send may take to end when this command is interrupted.
const endBeforeSend = 5 * time.Second

func (c *change) runBeforeSend(ctx context.Context, key crypto.Signer) error {
	file := client.PendingFile(c.Key)
	if c.saved != nil {
		file = c.saved.Next
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("--before-send: %w", err)
	}
	public, err := events.PublicKeyOf(key)
	if err != nil {
		return fmt.Errorf("--before-send: %w", err)
	}
	command := exec.CommandContext(ctx, "sh", "-c", c.beforeSend) //nolint:gosec // the user says what to run
	command.Env = append(os.Environ(), "OMI_NEW_KEY_FILE="+path, "OMI_NEW_PUBLIC_KEY="+public.String(),
		"OMI_APP_ID="+c.target.App.String(), "OMI_SERVICE_ID="+c.target.Service.String())
	// The standard output belongs to this command.
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = endBeforeSend
	err = command.Run()
	switch {
	case ctx.Err() != nil:
		return process.Unreachable(errors.New("interrupted in --before-send: nothing was sent"))
	case err != nil:
		return process.Refused(fmt.Errorf("--before-send failed (%w), and nothing was sent: the new key is in %s, and the next try has "+
			"the same", err, file))
	}
	return nil
}
