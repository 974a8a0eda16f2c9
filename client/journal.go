package client

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// ErrJournal means that the journal can't be read, or belongs to another service.
var ErrJournal = errors.New("the journal of the key store can't be used")

// entry is the one change that is under way.
type entry struct {
	Target string             `json:"target"`
	Kind   events.RequestKind `json:"kind"`
	AtOnce bool               `json:"at_once,omitzero"` // it ends the old key with the commit
	// EndEarlier says that it ends the keys that are in grace too.
	EndEarlier bool `json:"end_earlier,omitzero"`
	// Redated says that it is dated by the registry's time: it isn't dated again.
	Redated bool                   `json:"redated,omitzero"`
	Request registryclient.Message `json:"request"`
	// Committed is the registry's answer, once it is there.
	Committed *commitment `json:"committed,omitzero"`

	// by is the Master Key that signed it. Nil: the service's own key signed it, or it was found in
	// the journal.
	by      crypto.Signer
	resumed bool      // it was found in the journal at the start
	late    bool      // the registry said how long ago it was committed
	heard   time.Time // when we learnt that it was committed; zero: before this start
}

// commitment is what a service must know of a receipt, or of a record that shows the change.
type commitment struct {
	Sequence  int64 `json:"sequence"`
	Timestamp int64 `json:"timestamp"` // of the registry
	// GracePeriodExpiry is of the old key, by the registry's clock.
	GracePeriodExpiry int64        `json:"grace_period_expiry"`
	EventNonce        events.Nonce `json:"event_nonce,omitzero"`
	// PromoteAt is in milliseconds since the Unix epoch, by our own clock.
	PromoteAt int64 `json:"promote_at"`
	// JWKSMaxAge is in seconds, as the registry announced it. Nil: no caches are waited for.
	JWKSMaxAge *int64 `json:"jwks_max_age,omitzero"`
}

// ofSeconds is a time on the registry's clock, which counts up to 2^53-1: more than a Duration can
// hold. A century counts as for ever.
func ofSeconds(n int64) time.Duration {
	const century = 100 * 365 * 24 * 3600
	return time.Duration(max(-century, min(n, century))) * time.Second
}

// grace is how long the old key is accepted after the commit.
func (m *commitment) grace() time.Duration {
	return ofSeconds(max(0, m.GracePeriodExpiry-m.Timestamp))
}

// half is half of that, and a little less: the registry counts whole seconds, so up to one second
// is over when the grace period begins.
func (m *commitment) half() time.Duration { return max(0, m.grace()-time.Second) / 2 }

// receipt is the answer to a change that is committed.
func (e *entry) receipt(target events.Target, origin string) events.Receipt {
	return events.Receipt{
		Origin: origin, Target: target, Event: events.RequestCommitted, RequestNonce: e.Request.Nonce, PublicKey: e.Request.NewKey,
		Sequence: e.Committed.Sequence, Timestamp: e.Committed.Timestamp,
		GracePeriodExpiry: e.Committed.GracePeriodExpiry, EventNonce: e.Committed.EventNonce,
	}
}

// load reads the journal.
func (c *Client) load(ctx context.Context) (*entry, error) {
	text, err := c.cfg.Store.Load(ctx)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	e := &entry{resumed: true, late: true}
	if err := json.Unmarshal(text, e); err != nil {
		return nil, fmt.Errorf("%w: it is not a journal; delete it if no request is under way", ErrJournal)
	}
	if e.Target != c.cfg.Target.String() {
		return nil, fmt.Errorf("%w: it is about %s: finish that service's change first", ErrJournal, e.Target)
	}
	if !e.whole(c.cfg.Target) {
		return nil, fmt.Errorf("%w: it was changed after it was written; delete it if no request is under way", ErrJournal)
	}
	return e, nil
}

// whole reports whether the entry holds a request of this service, and a commitment that a registry
// could have made.
func (e *entry) whole(target events.Target) bool {
	m := &e.Request
	r, err := events.ParseRequest(m.Subject, []byte(m.Payload))
	if err != nil || r.Target != target || r.Kind != e.Kind || r.Nonce != m.Nonce || r.NewKey != m.NewKey {
		return false
	}
	c := e.Committed
	return c == nil || c.Sequence > 0 && c.Timestamp >= 0 && c.GracePeriodExpiry >= 0 && (c.JWKSMaxAge == nil || *c.JWKSMaxAge >= 0)
}

// save writes the journal; nil removes it.
func (c *Client) save(ctx context.Context, e *entry) error {
	var text []byte
	if e != nil {
		var err error
		if text, err = json.Marshal(e); err != nil {
			return fmt.Errorf("encode the journal: %w", err)
		}
	}
	return c.cfg.Store.Save(ctx, text)
}
