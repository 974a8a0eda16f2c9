package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keychange"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

// DryRun checks everything that a rotation needs, as omi doctor does, and makes the request with a
// new key that it does not keep. It sends nothing and writes nothing.
func DryRun(c keychange.Rotation) error {
	t, grace, err := c.Prepared()
	if err != nil {
		return err
	}
	if err := errors.Join(c.Check(), c.Readable()); err != nil {
		return err
	}
	d := newDoctor(&Config{Connection: c.Connection, Key: c.Key}, t, true)
	d.dry = true
	if d.saved, err = c.SavedKey(c.Key, events.Rotation); err != nil {
		return err
	}
	if err := d.run(func() {
		d.examineStore(c.Key)
		d.examineRequest(&c, grace)
	}); err != nil {
		return err
	}
	if wrong := d.count(stateWrong); wrong > 0 {
		return process.Refused(fmt.Errorf("nothing was sent; fix this before you rotate: %d of %d checks found something wrong", wrong, len(d.checks)))
	}
	if !c.JSON {
		return process.Print("Nothing was sent. The same command without --dry-run rotates the key.\n")
	}
	return nil
}

// examineStore checks whether the key store can be written. It opens only existing files, so it creates nothing.
func (d *doctor) examineStore(path string) {
	const name = "key store"
	if d.saved != nil && d.saved.OnlyRead() {
		d.ok(name, "%s is only read: %s", d.saved.File, d.saved.ReadOnly)
		return
	}
	file := client.KeyFile(path)
	if keyfile.Replaceable(file) != nil {
		return // examineKeyFiles has reported it
	}
	folder := filepath.Dir(file)
	if err := keyfile.Writable(folder); err != nil {
		d.wrong(name, fmt.Sprintf("%s: the new key can't be written in it: %v", folder, err), "let this user write there, or run this as a user who may")
		return
	}
	if _, err := os.Lstat(client.LockFile(path)); err == nil {
		if err := lockable(context.Background(), path); err != nil {
			d.wrong(name, err.Error(), "if a service has it open, it rotates by itself; otherwise wait for the other command")
			return
		}
	}
	d.ok(name, "%s can be written", folder)
}

// lockable returns an error if another process changes the keys of a key store.
func lockable(ctx context.Context, path string) error {
	store, err := client.OpenFile(path)
	if err != nil {
		return err
	}
	release, err := store.TryLock(ctx)
	if err != nil {
		return err
	}
	return release()
}

// examineRequest makes the request, and compares its grace period with the registry's.
func (d *doctor) examineRequest(c *keychange.Rotation, grace *time.Duration) {
	const name = "request"
	if _, err := os.Lstat(client.JournalFile(c.Key)); err == nil {
		return // a rotation would send that one again; it has a line of its own
	}
	by, err := session.ServiceKey(c.Key)
	if err != nil {
		return // the key file's own line says so
	}
	next := events.GenerateSigningKey()
	if d.saved != nil {
		if next = d.saved.New; d.service.Current.PublicKey == next.Public() {
			d.ok(name, "none: the new key is the service's current key already")
			return
		}
	}
	if detail, fix := refusedFor(&d.service, by.Public()); detail != "" {
		d.wrong(name, detail, fix)
		return
	}
	draft := session.NewDraft(events.Rotation, d.target)
	draft.Origin, draft.EndEarlier = d.Info.Origin, c.Emergency
	period := time.Duration(d.Info.GracePeriod) * time.Second
	if grace != nil {
		seconds := int64(*grace / time.Second)
		draft.GracePeriod = &seconds
		if *grace > period {
			d.wrong(name, fmt.Sprintf("a grace period of %s, and the registry's own is %s", *grace, period), "ask for less, or omit --grace-period")
			return
		}
		period = *grace
	}
	if kept := time.Duration(d.Info.JWKSMaxAge) * time.Second; c.JWKS && period > 0 && draft.GracePeriod != nil && *draft.GracePeriod < d.Info.JWKSGrace() {
		d.wrong(name, fmt.Sprintf("a grace period of %s: caches may keep the previous JWK Set for %s, and half of the period is over by then", period, kept),
			fmt.Sprintf("ask for %ds or more, or omit --grace-period", d.Info.JWKSGrace()))
		return
	}
	m, err := registryclient.Sign(draft, by.Private(), next.Private())
	if err != nil {
		d.wrong(name, err.Error(), "fix what it says")
		return
	}
	d.ok(name, "%d bytes to %s; %s", len(m.Payload), m.Subject, graceOf(&d.service, period, c.Emergency))
}

// refusedFor says why the registry would now refuse a rotation that this key signs, by
// the service's record, and what to do. It says nothing if the record is not known, because another
// line does.
func refusedFor(r *events.ServiceRecord, by events.PublicKey) (detail, fix string) {
	current := r.Current.PublicKey
	switch {
	case r.Status == events.Revoked:
		return "the registry would refuse it (unknown_service): the service was revoked", "omi bind it again, with a key that was never used"
	case !current.IsZero() && current != by:
		return "the registry would refuse it: only the service's current key may sign it, " + current.String(),
			"see the key above; if you don't have the current key, omi reset gives the service a new one"
	case r.NextRotationAt > r.Timestamp:
		left := time.Duration(r.NextRotationAt-r.Timestamp) * time.Second
		return "the registry would refuse it (rate_limited): the service has used up its rotations for this minute",
			fmt.Sprintf("try again in %s, at %s", left, printable.Date(r.NextRotationAt))
	}
	return "", ""
}

// graceOf says which keys would still be accepted.
func graceOf(r *events.ServiceRecord, period time.Duration, emergency bool) string {
	text, earlier := fmt.Sprintf("the old key would be in grace for %s", period), len(r.Grace)
	switch {
	case emergency:
		text = "the old key would end at once, and so would those in grace: " + strconv.Itoa(earlier)
	case period == 0 && earlier > 0:
		text += ", and those already in grace would stay so: " + strconv.Itoa(earlier) + "; --emergency ends them too"
	}
	return text
}
