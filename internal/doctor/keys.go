package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// keyFiles are the key in a file, and those that may be next to it. A missing key is zero.
type keyFiles struct{ current, pending events.PublicKey }

// examineKeyFiles checks files on this machine, for which no broker is needed.
func (d *doctor) examineKeyFiles() (k keyFiles) {
	if d.flags.MasterKey != "" {
		d.examineKeyFile("master key file", d.flags.MasterKey,
			"ask its holder; if the Master Key is lost, the registry's operator can replace it")
	}
	if d.flags.Key == "" {
		return k
	}
	file := client.KeyFile(d.flags.Key)
	k.current = d.examineKeyFile("key file", file, "name the right file; if the key is lost, omi reset gives the service a new one")
	if place := (*keyfile.PlaceError)(nil); d.saved == nil && !k.current.IsZero() && errors.As(keyfile.Replaceable(file), &place) {
		d.wrong("key store", fmt.Sprintf("%s: %v: %s", file, keyfile.ErrNotReplaceable, place.Why), place.Do)
	}
	journal := client.JournalFile(d.flags.Key)
	k.pending = d.nextTo("pending key file", client.PendingFile(d.flags.Key))
	_, err := os.Lstat(journal)
	switch under := err == nil; {
	case under && !k.pending.IsZero():
		d.warn("request under way", "a request for a new key has no answer yet: "+journal,
			"run the interrupted command again: it continues")
	case under:
		d.warn("request under way", "the request in "+journal+" was answered, and is left over",
			"the next omi rotate or omi reset removes it")
	case !k.pending.IsZero():
		d.warn("request under way", client.PendingFile(d.flags.Key)+" is a new key whose request was refused, or never sent",
			"run omi rotate or omi reset: it asks for that key")
	}
	return k
}

// examineKeyFile checks whether a key exists, and whether only its owner can read it.
func (d *doctor) examineKeyFile(name, path, missing string) events.PublicKey {
	key, err := keyfile.Read(path)
	switch {
	case errors.Is(err, keyfile.ErrMissing):
		d.wrong(name, err.Error(), missing)
		return events.PublicKey{}
	case errors.Is(err, keyfile.ErrOpen):
		d.wrong(name, err.Error(),
			"and if others use this machine, change the key: omi rotate, or omi reset if that is refused")
		return events.PublicKey{}
	case err != nil:
		d.wrong(name, err.Error(), "name a file that omi keygen or omi bind made")
		return events.PublicKey{}
	}
	if !d.examineFolder(name, path) {
		d.ok(name, "%s: %s", path, key.Public())
	}
	return key.Public()
}

// examineFolder checks whether others can replace our file by theirs. The sticky bit, as on /tmp,
// prevents that.
func (d *doctor) examineFolder(name, path string) (open bool) {
	const groupWrites, othersWrite = 0o020, 0o002
	folder := filepath.Dir(keyfile.Real(path))
	info, err := os.Stat(folder)
	if err != nil || info.Mode()&fs.ModeSticky != 0 {
		return false // the file in it was just read
	}
	mode := info.Mode().Perm()
	switch {
	case mode&othersWrite != 0, mode&groupWrites != 0 && info.Mode()&fs.ModeSetgid == 0:
		d.wrong(name, fmt.Sprintf("%s: others may replace the key: they can write in its folder (mode %04o)", path, mode), "chmod go-w "+folder)
	case mode&groupWrites != 0: // Kubernetes sets this mode for the fsGroup of a pod, at each start
		d.warn(name, fmt.Sprintf("%s: the group of its folder may replace the key (mode %04o)", path, mode),
			"nothing, if only this service is in that group, such as the fsGroup of its pod; otherwise chmod g-w "+folder)
	default:
		return false
	}
	return true
}

// nextTo reads a key that may be next to a file.
func (d *doctor) nextTo(name, path string) events.PublicKey {
	key, err := keyfile.Read(path)
	if errors.Is(err, keyfile.ErrMissing) {
		return events.PublicKey{}
	}
	if err != nil {
		d.wrong(name, err.Error(), "it is a key of the same service: protect it in the same way")
		return events.PublicKey{}
	}
	return key.Public()
}

// examineKey says what the registry knows of the key.
func (d *doctor) examineKey(ctx context.Context, k keyFiles) {
	const name = "key"
	if !d.named || k.current.IsZero() || d.Info.Origin == "" {
		return
	}
	var history events.ServiceHistory
	err := d.within(ctx, events.LookupHistorySubject, func(ctx context.Context) (err error) {
		history, err = d.History(ctx, d.target)
		return err
	})
	if errors.Is(err, registryclient.ErrUnknownService) {
		return // the service's own line says so
	}
	if err != nil {
		d.wrong(name, err.Error(), "see the registry above")
		return
	}
	if d.saved != nil {
		k.pending = d.examineNewKey(history)
	}
	d.checks = append(d.checks, judgeKey(name, d.flags.Key, k, history))
}

// examineNewKey checks whether the registry would accept the key of --new-key, and returns it.
func (d *doctor) examineNewKey(h events.ServiceHistory) events.PublicKey {
	const name = "new key"
	key := d.saved.New.Public()
	at := slices.IndexFunc(h.Keys, func(k events.HistoryKey) bool { return k.PublicKey == key })
	switch {
	case at < 0:
		d.ok(name, "%s: %s", d.saved.Next, key)
	case h.Keys[at].Until == nil:
		d.ok(name, "%s: it is the service's current key already, by %s at sequence %d", d.saved.Next, h.Keys[at].Event, h.Keys[at].Sequence)
	default:
		d.wrong(name, d.saved.Next+": the registry would refuse it (key_in_use): the service had this key before",
			"omi keygen --out FILE makes another")
	}
	return key
}

// judgeKey compares a key with the history of the service that it is meant for.
func judgeKey(name, path string, k keyFiles, h events.ServiceHistory) check {
	var mine *events.HistoryKey
	var current events.PublicKey
	for i := range h.Keys {
		if h.Keys[i].PublicKey == k.current {
			mine = &h.Keys[i]
		}
		if h.Keys[i].Until == nil {
			current = h.Keys[i].PublicKey
		}
	}
	was := "is not one of this service's"
	grace := mine != nil && mine.Until != nil && *mine.Until > h.Timestamp
	switch {
	case grace:
		was = "is in grace until " + printable.Date(*mine.Until)
	case mine != nil && mine.Until != nil:
		was = "ended at " + printable.Date(*mine.Until)
	}
	switch {
	case mine != nil && mine.Until == nil:
		detail := fmt.Sprintf("it is the service's current key, by %s at sequence %d", mine.Event, mine.Sequence)
		return check{Name: name, State: stateOK, Detail: detail}
	case !current.IsZero() && current == k.pending:
		return check{
			name, stateWarning, "it " + was + "; the registry has committed the new key next to it",
			"run omi rotate again with the same --key: it switches to that one",
		}
	case mine == nil:
		return check{
			name, stateWrong, "it " + was + ": " + path + " holds another service's key, or one that was never bound",
			"name this service's file; if its key is lost, omi reset gives it a new one",
		}
	case grace:
		return check{
			name, stateWarning, "it " + was + ": its signatures are accepted, but it can no longer change anything",
			"sign with the current key; if you know of no rotation, someone else made it: omi reset",
		}
	}
	return check{
		name, stateWrong, "it " + was + ": an old copy, or someone else has rotated it",
		"name the file of the current key; if there is none, omi reset gives the service a new one",
	}
}
