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
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// SavedKeys is the key store of a rotation to a key that was made and saved beforehand (--new-key).
// It needs no disk: the same command, run again, learns from the registry what happened to it. The
// file of the old key gets the new key, if it can be replaced; a mounted Secret can't, and is only
// read.
type SavedKeys struct {
	folder   *client.Folder // of the old key; nil: the key is only read
	ReadOnly string         // the reason
	File     string         // of the old key
	Next     string         // the file of the new key
	old, New events.SigningKey
	promoted bool
	underWay []byte
}

// SavedKey returns the store for --new-key, or nil without that flag. file is that of the old key,
// which a reset doesn't need.
func (f *SavedFlags) SavedKey(file string, kind events.RequestKind) (*SavedKeys, error) {
	if f.NewKey == "" {
		return nil, nil
	}
	for _, left := range []string{client.JournalFile(file), client.PendingFile(file)} {
		if _, err := os.Lstat(left); err == nil {
			return nil, process.Usagef("--new-key: %s belongs to a change to another key, which is not finished: "+
				"run the same command without --new-key first", left)
		}
	}
	k := &SavedKeys{File: client.KeyFile(file), Next: f.NewKey}
	var err error
	if k.old, err = session.ServiceKey(file); err != nil && (kind != events.Reset || !errors.Is(err, keyfile.ErrMissing)) {
		return nil, err
	}
	if k.New, err = process.ReadKey("--new-key", f.NewKey, "omi keygen --out FILE makes one; save it before you change to it"); err != nil {
		return nil, err
	}
	place := (*keyfile.PlaceError)(nil)
	switch k.folder, err = client.OpenFile(file); {
	case errors.As(err, &place):
		k.ReadOnly = place.Why
	case err != nil:
		return nil, process.Usagef("--key: %w", err)
	}
	return k, nil
}

// TryLock implements [client.Locker].
func (k *SavedKeys) TryLock(ctx context.Context) (release func() error, err error) {
	if k.folder == nil {
		return func() error { return nil }, nil
	}
	return k.folder.TryLock(ctx)
}

// Signer implements [client.Keys].
func (k *SavedKeys) Signer(_ context.Context, slot client.Slot) (crypto.Signer, error) {
	switch {
	case slot == client.Current && !k.promoted && k.old.IsZero():
		return nil, client.ErrNoKey
	case slot == client.Current && !k.promoted:
		return k.old.Private(), nil
	case slot == client.Current:
		return k.New.Private(), nil
	case k.promoted:
		return nil, client.ErrNoKey
	}
	return k.New.Private(), nil
}

var errOnlyThatKey = errors.New("only the key of --new-key may be asked for")

// Generate implements [client.Keys]: it makes no other key.
func (*SavedKeys) Generate(context.Context, client.Slot) (crypto.Signer, error) {
	return nil, errOnlyThatKey
}

// Promote implements [client.Keys].
func (k *SavedKeys) Promote(context.Context) error {
	if k.folder != nil {
		if err := keyfile.Replace(k.File, k.File, k.New); err != nil {
			return err
		}
	}
	k.promoted = true
	return nil
}

// Load implements [client.Journal].
func (k *SavedKeys) Load(context.Context) ([]byte, error) { return k.underWay, nil }

// Save implements [client.Journal].
func (k *SavedKeys) Save(_ context.Context, text []byte) error {
	k.underWay = text
	return nil
}

// store returns the key store that the change works on.
func (c *change) store() (client.KeyStore, error) {
	if c.saved != nil {
		return c.saved, nil
	}
	return client.OpenFile(c.Key)
}

// place is the file that has the new key in the end.
func (c *change) place() string {
	if c.saved != nil && c.saved.OnlyRead() {
		return c.saved.Next
	}
	return client.KeyFile(c.Key)
}

// note says what happens to the old key's file.
func (c *change) note() string {
	if c.saved != nil && c.saved.OnlyRead() {
		return fmt.Sprintf("  %s was only read, and holds the old key: %s\n", c.saved.File, c.saved.ReadOnly)
	}
	return ""
}

// OnlyRead reports whether the old key's file can't be replaced.
func (k *SavedKeys) OnlyRead() bool { return k.folder == nil }

// sameKey reports whether --key and --new-key hold the same key.
func (k *SavedKeys) sameKey() bool {
	return k != nil && !k.old.IsZero() && k.old.Public() == k.New.Public()
}

// already ends a command that was run again after it had replaced the old key's file, so that both
// files hold the new key.
func (c *change) already(ctx context.Context, s *session.Session) error {
	asking, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	r, err := s.Record(asking, c.target)
	if err != nil {
		return err
	}
	if r.Current.PublicKey != c.saved.New.Public() {
		return process.Usagef("--new-key: %s holds the same key as --key, which is not the service's current key: "+
			"omi doctor %s --key %s says whose it is", c.saved.Next, session.FlagsOf(c.target), c.Key)
	}
	if c.kind == events.Reset {
		if err := c.alreadyReset(asking, s); err != nil {
			return err
		}
	} else {
		c.tellCurrent()
	}
	receipt := events.Receipt{
		Target: c.target, Event: events.RequestCommitted, Timestamp: r.Timestamp, Sequence: r.Sequence, PublicKey: r.Current.PublicKey,
		GracePeriodExpiry: r.Timestamp,
	}
	if len(r.Grace) > 0 {
		receipt.GracePeriodExpiry = r.Grace[0].Expires
	}
	return c.report(ctx, s, receipt)
}

// savesKey reports whether the new key is saved elsewhere.
func (c *change) savesKey() bool { return c.saved != nil || c.beforeSend != "" }

// alreadyReset ends a reset that was run again after it had been committed: the saved key is the
// current one, and a reset made it so.
func (c *change) alreadyReset(ctx context.Context, s *session.Session) error {
	history, err := s.History(ctx, c.target)
	if err != nil {
		return err
	}
	last := len(history.Keys) - 1
	if last >= 0 && history.Keys[last].Event == events.MasterReset {
		c.tellCurrent()
		return nil
	}
	do := "omi keygen --out FILE makes another for --new-key"
	if c.saved == nil {
		do = "run omi rotate with the same --key, which switches to it; then reset"
	}
	return process.Usagef("the saved key is the service's current key already, but not by a reset: %s", do)
}

// tellCurrent says that there was nothing left to ask for.
func (c *change) tellCurrent() {
	if !c.JSON {
		say("The new key is the service's current key already: nothing was sent.\n")
	}
}

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
