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
	// endedTried limits how many ended keys are tried against a signature that no remembered key
	// made.
	endedTried = 256
	// endedASecond limits these verifications to so many a second: 0.05 s of a core. A signature
	// that is not tried against them is answered with invalid_signature, which is a refusal as
	// well.
	endedASecond = 1024
	// readingEnded is the least number of verifications that a request is charged, because the keys
	// must be read.
	readingEnded = 16
)

// ended asks for the ended keys that are not remembered.
type ended struct {
	// nil if there is no source
	keys    func(ctx context.Context, target events.Target, most int) (keyring.Keyring, error)
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

// made reports whether an ended key that is not remembered made the signature. It charges the
// budget before it reads a key.
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

// costOfEnded returns the number of verifications to charge for reading and trying the ended keys.
func (k *known) costOfEnded() int {
	if k.sequence == 0 { // the registry sends none: the service may have had any number of keys
		return endedTried
	}
	return int(max(readingEnded, min(k.sequence, endedTried)))
}

// mayHaveForgotten reports whether the service may have had more keys than are remembered.
func (k *known) mayHaveForgotten(now int64) bool {
	kept := 0
	for _, key := range k.keyring.Keys {
		if k.keyring.At(key, now) == keyring.Ended {
			kept++
		}
	}
	return kept >= endedKept
}
