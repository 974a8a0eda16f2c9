package restore

import (
	"context"
	"errors"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// Compared reports whether anything may be served.
func (g *Guard) Compared() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.compared
}

// OnHold returns how many services are on hold.
func (g *Guard) OnHold() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.behind)
}

// Epoch returns the epoch, and whether the database is complete: it was compared and lacks nothing.
func (g *Guard) Epoch() (epoch int, complete bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.epoch, g.compared && len(g.behind) == 0
}

// Same returns [ErrComparing] if the epoch has changed: the database was compared again since, so
// what was read before may come from another one.
func (g *Guard) Same(ctx context.Context, epoch int) error {
	if err := g.Check(ctx); err != nil {
		return err
	}
	if now, _ := g.Epoch(); now != epoch {
		return ErrComparing
	}
	return nil
}

// Check reads the position, and returns [ErrComparing] if the database may be older than it was. A
// caller that decides on what it read calls Check after it has read.
func (g *Guard) Check(ctx context.Context) error {
	g.mu.Lock()
	compared, seen, era := g.compared, g.seen, g.era
	g.mu.Unlock()
	if !compared {
		return ErrComparing
	}
	now, _, err := g.cfg.Ledger.Position(ctx)
	if err != nil {
		g.failed(ctx, err)
		return err
	}
	if g.cfg.Sessions.Era() != era {
		g.elsewhere()
		return ErrComparing
	}
	if now.OlderThan(seen) {
		g.Suspect("the position in the stream went back")
		return ErrComparing
	}
	g.saw(now)
	return nil
}

// Admit takes the requests of services on hold out of a batch that was loaded. It marks the keys
// that missing events registered as taken.
func (g *Guard) Admit(ctx context.Context, st *decision.State, todo []decision.Incoming) (admitted, onHold []decision.Incoming, err error) {
	if err := g.Check(ctx); err != nil {
		return nil, nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.epoch != st.Epoch { // under the lock, because what was read takes services off hold
		return nil, nil, ErrComparing
	}
	for _, in := range todo {
		if _, missing := g.missing[in.Request.NewKey]; missing {
			st.TakenKeys[in.Request.NewKey] = true // it was registered, and will be again
		}
	}
	if len(g.behind) == 0 {
		return todo, nil, nil
	}
	for _, in := range todo {
		if in.Refusal == nil && !g.reached(in.Request.Target, st.SequenceOf(in.Request.Target)) {
			onHold = append(onHold, in)
		} else {
			admitted = append(admitted, in)
		}
	}
	return admitted, onHold, nil
}

// Answers returns [ErrComparing] or [ErrBehind] if the database may know less of a service than was
// announced. The database has this sequence of the service.
func (g *Guard) Answers(t events.Target, sequence int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.compared:
		return ErrComparing
	case !g.reached(t, sequence):
		return ErrBehind
	}
	return nil
}

// AnswersNoKey returns why the registry can't say that a key was never registered; nil: it can.
func (g *Guard) AnswersNoKey(key events.PublicKey) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.compared {
		return ErrComparing
	}
	if _, missing := g.missing[key]; missing {
		return ErrBehind
	}
	return nil
}

// reached reports whether a service may be served that has this sequence in the database: no newer
// one is known. If so, it takes the service off hold. The caller holds the lock.
func (g *Guard) reached(t events.Target, sequence int64) bool {
	n, ok := g.behind[t]
	if !ok {
		return true
	}
	if sequence < n.sequence {
		return false
	}
	delete(g.behind, t)
	for _, key := range n.keys {
		delete(g.missing, key)
	}
	g.cfg.Log.Info("the database has the service's last change again; the service is served", "service", t.String(), "sequence", sequence, "still_behind", len(g.behind))
	return true
}

// Position returns the position that was seen last; zero: nothing is compared yet.
func (g *Guard) Position() ledger.Position {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.compared {
		return ledger.Position{}
	}
	return g.seen
}

// MoveFrom returns the position from which the one in the database may move on; false: it must stay
// where it is.
func (g *Guard) MoveFrom() (from ledger.Position, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen, g.compared && len(g.behind) == 0
}

// Moved takes the result of the transaction that deletes what was published: the position in the
// database, or the error. [ledger.ErrOlder] means that the database was restored.
func (g *Guard) Moved(ctx context.Context, now ledger.Position, err error) {
	switch {
	case errors.Is(err, ledger.ErrOlder):
		g.Suspect("messages to be published are gone from the outbox, or the position went back")
	case err != nil:
		g.failed(ctx, err)
	default:
		g.saw(now)
	}
}

// saw remembers the newest position.
func (g *Guard) saw(now ledger.Position) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.compared && !now.OlderThan(g.seen) {
		g.seen = now
	}
}
