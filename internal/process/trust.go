package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/sqldb"
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

// OpenDatabase marks an unusable URL as an error that the person at the shell can fix.
func OpenDatabase[T any](open func() (T, error)) (T, error) {
	db, err := open()
	if errors.Is(err, sqldb.ErrURL) {
		err = Usage(fmt.Errorf("--database-url: %w", err))
	}
	return db, err
}

// CheckDatabase refuses a URL that can never be used, before the process starts anything.
func CheckDatabase(url string) error {
	if err := sqldb.CheckURL(url); err != nil {
		return Usagef("--database-url: %w", err)
	}
	return nil
}

// answersWithin is how long a command that a person waits for tries to reach the database.
const answersWithin = 10 * time.Second

// OpenExisting is [OpenDatabase] for a command that looks into a process's database, and that a
// person waits for. It refuses a file that does not exist: in the wrong folder, the command would
// create an empty one. A server that doesn't answer is [Unreachable].
func OpenExisting[T any](ctx context.Context, url string, open func(context.Context) (T, error)) (db T, err error) {
	if err := CheckDatabase(url); err != nil {
		return db, err
	}
	if path, file := strings.CutPrefix(strings.TrimSpace(url), "sqlite:"); file {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return db, Usagef("--database-url: there is no file %s: name the database that the process serves, as its own --database-url or OMI_DATABASE_URL does", path)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	db, err = OpenDatabase(func() (T, error) { return open(ctx) })
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		what := "no database server answers at --database-url"
		if errors.Is(err, sqldb.ErrReadOnly) {
			what = "no database server at --database-url takes writes (to look into a standby, add target_session_attrs=any to the URL)"
		}
		err = Unreachable(fmt.Errorf("%s within %s: %w", what, answersWithin, err))
	}
	return db, err
}
