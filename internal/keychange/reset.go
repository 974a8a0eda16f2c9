package keychange

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

// Reset is what `omi reset` asks for.
type Reset struct {
	session.Connection
	DeveloperFlags
	StoreFlags
	SavedFlags
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
