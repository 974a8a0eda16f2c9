package process

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
)

// trustFileEvery is how often the file is read. It is used once it has been the same twice: half a
// file may be valid, too.
const trustFileEvery = time.Second

var errNoKeys = errors.New("it names no key")

// Follow reads the file of --trust-file repeatedly until ctx ends, and passes a trust that differs
// from now to use. A file that can't be used changes nothing, and is logged once.
func (t Trust) Follow(ctx context.Context, log *slog.Logger, now events.Trust, use func(events.Trust)) {
	if t.File == "" {
		return
	}
	tick := time.NewTicker(trustFileEvery)
	defer tick.Stop()
	for seen, done := "", false; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		content, err := os.ReadFile(t.File)
		text := string(content)
		if err != nil {
			text = err.Error()
		}
		switch {
		case text != seen:
			seen, done = text, false
			continue
		case done:
			continue
		}
		done = true
		next, err := t.reload(now)
		if err != nil {
			log.WarnContext(ctx, "--trust-file has changed, and can't be used: the trust stays as it was", "error", err)
			continue
		}
		if !sameKeys(now, next) {
			now = next
			use(next)
		}
	}
}

// reload is Load for a file that has changed: one without a key is a mistake, or is being written.
func (t Trust) reload(now events.Trust) (events.Trust, error) {
	next, err := t.Load()
	if err != nil || sameKeys(now, next) {
		return next, err
	}
	keys, err := keyfile.ReadTrustedKeys(t.File)
	if err == nil && len(keys) == 0 {
		err = errNoKeys
	}
	return next, err
}

func sameKeys(a, b events.Trust) bool { return slices.Equal(a.Announcement(), b.Announcement()) }
