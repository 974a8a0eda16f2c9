package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
)

// pending replaces the key in a file without ever losing one. Beside FILE stand, while a request is under way:
//
//	FILE.pending   the new key, on the disk before anybody hears of it
//	FILE.request   the signed request, on the disk before it is published
//
// A crash at any point leaves files from which the same command goes on: with a request on the disk, the same bytes
// are sent again, and the registry answers with the first receipt. A committed request makes the pending key the
// current one by a rename.
//
//	FILE.refused   the new key of the last refused request: whoever saw that request can publish it once more, and
//	               what was refused for a passing reason could stand then
type pending struct{ file string }

func (p pending) keyFile() string     { return p.file + ".pending" }
func (p pending) requestFile() string { return p.file + ".request" }
func (p pending) refusedFile() string { return p.file + ".refused" }

// adopt makes the key of a refused request the current one, if the registry says that it is.
func (p pending) adopt(ctx context.Context, s *session, t events.Target) error {
	key, err := keyfile.Read(p.refusedFile())
	if errors.Is(err, keyfile.ErrMissing) {
		return nil
	}
	if err != nil {
		return process.Usage(err)
	}
	record, err := s.record(ctx, t)
	switch unknown := (*problem)(nil); {
	case errors.As(err, &unknown) && unknown.Status == http.StatusNotFound:
		return nil
	case err != nil:
		return err
	case record.Current.PublicKey != key.Public():
		return nil
	}
	return keyfile.Rename(p.refusedFile(), p.file)
}

// prepare returns the request that is under way, or makes a new one with a new key.
func (p pending) prepare(draft events.Draft, by func() (events.SigningKey, error)) (m message, resumed bool, err error) {
	if m, ok, err := p.underWay(); ok || err != nil {
		if err == nil && m.Subject != draft.Subject() {
			err = process.Usagef("%s holds a request to %s that was never answered; finish that one first, or delete %s and %s",
				p.requestFile(), m.Subject, p.requestFile(), p.keyFile())
		}
		return m, true, err
	}
	signer, err := by()
	if err != nil {
		return message{}, false, err
	}
	draft.NewKey = events.GenerateSigningKey()
	if m, err = newMessage(draft, signer); err != nil {
		return message{}, false, err
	}
	content, err := json.Marshal(m)
	if err != nil {
		return message{}, false, fmt.Errorf("encode the request: %w", err)
	}
	if err := errors.Join(keyfile.Remove(p.keyFile()), keyfile.Create(p.keyFile(), draft.NewKey)); err != nil {
		return message{}, false, err
	}
	return m, false, keyfile.WriteFile(p.requestFile(), content)
}

// underWay reads the request of a command that did not come to its end. A request without its key was answered: the
// crash came after the rename.
func (p pending) underWay() (m message, ok bool, err error) {
	content, err := os.ReadFile(p.requestFile())
	if errors.Is(err, os.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("read the request under way: %w", err)
	}
	if _, err := os.Stat(p.keyFile()); errors.Is(err, os.ErrNotExist) {
		return m, false, keyfile.Remove(p.requestFile())
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return m, false, process.Usagef("%s can't be read: delete it and %s if no request is under way", p.requestFile(), p.keyFile())
	}
	return m, true, nil
}

// replace sends the request, and makes its key the current one if it is committed.
func (p pending) replace(ctx context.Context, s *session, t events.Target, m message) (events.Receipt, error) {
	receipt, err := s.exchange(ctx, t, m)
	if err != nil {
		return receipt, err
	}
	if receipt.Event == events.RequestRejected {
		return receipt, errors.Join(keyfile.Rename(p.keyFile(), p.refusedFile()), keyfile.Remove(p.requestFile()))
	}
	if err := keyfile.Rename(p.keyFile(), p.file); err != nil {
		return receipt, fmt.Errorf("make the new key the current one: %w; run the same command again", err)
	}
	return receipt, keyfile.Remove(p.requestFile())
}
