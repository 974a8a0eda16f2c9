package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/keyring"
)

// lookups asks the registry about services, and bounds the costs that strangers can cause. For one
// service it asks one question at a time, and keeps the answer, or the failure, for a moment. For
// all services together it limits the open questions and the remembered answers.
type lookups struct {
	registry Registry
	timeout  time.Duration
	keep     time.Duration
	now      func() time.Time
	log      *slog.Logger

	flights singleflight.Group
	free    chan struct{} // holds a token for each question in flight
	memory  *lru.Cache[events.Target, remembered]
}

// finding is the result of a question to the registry.
type finding struct {
	record   *known // nil: the registry has no such service, or gave no answer
	answered bool
}

// remembered is a finding that stays valid for a moment. The usual memory with a time limit runs a
// goroutine that can't be stopped, and has a clock of its own.
type remembered struct {
	finding
	until time.Time
}

func newLookups(cfg Config) (*lookups, error) {
	memory, err := lru.New[events.Target, remembered](cfg.LookupMemorySize)
	if err != nil {
		return nil, fmt.Errorf("make the memory of lookups: %w", err)
	}
	return &lookups{
		registry: cfg.Registry, timeout: cfg.LookupTimeout, keep: cfg.LookupMemory, now: cfg.Now, log: cfg.Log,
		free: make(chan struct{}, cfg.LookupsInFlight), memory: memory,
	}, nil
}

// find returns the registry's record of a service, asked for or remembered.
func (l *lookups) find(ctx context.Context, target events.Target) finding {
	if have, ok := l.remember(target); ok {
		return have
	}
	found, _, _ := l.flights.Do(target.String(), func() (any, error) {
		if have, ok := l.remember(target); ok { // another flight has landed meanwhile
			return have, nil
		}
		select {
		case l.free <- struct{}{}:
			defer func() { <-l.free }()
			return l.ask(ctx, target), nil
		default: // too many in flight: this is no answer to remember
			return finding{}, nil
		}
	})
	have, _ := found.(finding)
	return have
}

func (l *lookups) remember(target events.Target) (finding, bool) {
	have, ok := l.memory.Get(target)
	return have.finding, ok && l.now().Before(have.until)
}

func (l *lookups) ask(ctx context.Context, target events.Target) finding {
	// Other callers wait for the same answer, so it does not end with the first caller's context.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
	defer cancel()
	var found finding
	answer, err := l.registry.ServiceRecord(ctx, target)
	switch {
	case err == nil:
		found = finding{record: ofRecord(&answer), answered: true}
	case errors.Is(err, registryclient.ErrUnknownService):
		found.answered = true
	default:
		l.log.DebugContext(ctx, "the registry gives no answer", "target", target.String(), "error", err)
	}
	l.memory.Add(target, remembered{found, l.now().Add(l.keep)})
	return found
}

// ofRecord returns the keyring of the registry's record. It names exactly the keys that are
// accepted.
func ofRecord(r *events.ServiceRecord) *known {
	k := known{sequence: r.Sequence, keyring: keyring.Keyring{Head: r.Sequence}}
	// zero bytes are a key that anyone can sign for
	if r.Status == events.Active && !r.Current.PublicKey.IsZero() {
		k.keyring.Keys = append(k.keyring.Keys, keyring.Key{
			PublicKey: r.Current.PublicKey, Position: r.Sequence, From: r.Current.Since, End: keyring.NoEnd,
		})
	}
	for _, grace := range r.Grace {
		// The record only says that this key came before the current one.
		k.keyring.Keys = append(k.keyring.Keys, keyring.Key{PublicKey: grace.PublicKey, Position: -r.Sequence, End: grace.Expires})
	}
	return &k
}
