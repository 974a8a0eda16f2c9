package verify

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

const (
	// endedTried is against how many keys that have ended a signature is held which no remembered key made.
	endedTried = 256
	// endedASecond is how many such verifications there may be a second: 0.05 s of a core. A signature that is not held against
	// them is invalid_signature, and refused as well.
	endedASecond = 1024
	// readingEnded is how many of them it counts for at least: the keys have to be read.
	readingEnded = 16
)

// ended asks for the keys that are not remembered.
type ended struct {
	keys    func(ctx context.Context, target events.Target, most int) (keyring.Keyring, error) // nil: there is nobody to ask
	timeout time.Duration
	now     func() time.Time
	log     *slog.Logger
	limit   *rate.Limiter
}

func newEnded(cfg Config) *ended {
	return &ended{
		keys: cfg.EndedKeys, timeout: cfg.LookupTimeout, now: cfg.Now, log: cfg.Log,
		limit: rate.NewLimiter(endedASecond, endedASecond),
	}
}

// made says whether a key that the service had long ago made the signature. What that costs is charged before a key is read.
func (e *ended) made(ctx context.Context, q *events.VerifyQuery, have *known) bool {
	now := e.now()
	if e.keys == nil || !have.mayHaveForgotten(now.Unix()) || !e.limit.AllowN(now, have.costOfEnded()) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	newest, err := e.keys(ctx, q.Target, endedTried)
	if err != nil {
		e.log.DebugContext(ctx, "the keys that have ended can't be read", "target", q.Target.String(), "error", err)
		return false
	}
	k := known{keyring: newest}
	return k.endedState(q, now.Unix(), endedTried) == keyring.Ended
}

// costOfEnded returns how many verifications it counts for to read the keys that have ended, and to try them.
func (k *known) costOfEnded() int {
	if k.sequence == 0 { // the registry sends none: the service may have had any number of keys
		return endedTried
	}
	return int(max(readingEnded, min(k.sequence, endedTried)))
}

// mayHaveForgotten says whether the service may have had more keys than are remembered.
func (k *known) mayHaveForgotten(now int64) bool {
	kept := 0
	for _, key := range k.keyring.Keys {
		if k.keyring.At(key, now) == keyring.Ended {
			kept++
		}
	}
	return kept >= endedKept
}
