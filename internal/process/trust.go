package process

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
)

// Trust says whom a process believes: flags for a kong grammar.
type Trust struct {
	Origin string   `env:"OMI_ORIGIN" default:"omiappreg.org" help:"The registry's domain name (${default})."`
	Keys   []string `name:"trust" env:"OMI_TRUST" placeholder:"ed25519:…" help:"A public key of the registry, repeatable; a stolen one ends: KEY@TIME."`
	File   string   `name:"trust-file" env:"OMI_TRUST_FILE" placeholder:"FILE" help:"A file with public keys of the registry, one per line, as for --trust."`
}

// Load returns the trust that the flags describe.
func (t Trust) Load() (events.Trust, error) {
	var keys []events.TrustedKey
	// a variable made from a file has one key per line
	for _, s := range strings.Fields(strings.Join(t.Keys, " ")) {
		key, err := events.ParseTrustedKey(s)
		if err != nil {
			return events.Trust{}, Usagef("--trust: %w", err)
		}
		keys = append(keys, key)
	}
	if t.File != "" {
		more, err := keyfile.ReadTrustedKeys(t.File)
		if err != nil {
			return events.Trust{}, Usagef("--trust-file: %w", err)
		}
		keys = append(keys, more...)
	}
	if err := events.CheckOrigin(t.Origin); err != nil {
		return events.Trust{}, Usagef("--origin %q: %w", t.Origin, err)
	}
	trust, err := events.NewTrustUntil(t.Origin, keys...)
	if errors.Is(err, events.ErrNoTrust) {
		return trust, Usagef("the registry's public key is missing: give --trust ed25519:…, or --trust-file")
	}
	if err != nil {
		return trust, Usagef("--trust: %w", err)
	}
	if len(trust.PublicKeys()) == 0 {
		return trust, Usagef("--trust: every key that it names has ended, so nothing that the registry signs now would be believed: " +
			"name its present key as well")
	}
	return trust, nil
}

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
