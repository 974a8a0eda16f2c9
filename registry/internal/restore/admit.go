package restore

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"

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

// shortLooks is how many looks in a row must find fewer events than were there: a new leader of a
// cluster may say so once.
const shortLooks = 2

// Suspect starts a new epoch: the database is compared again before anything is served.
func (g *Guard) Suspect(why string) {
	if g.begin() { // otherwise it was said before
		g.cfg.Log.Error("the database is not as this registry left it: was it restored from a backup? Nothing is served until it is compared with the stream of events", "why", why)
		g.wake()
	}
}

// failed has the database compared again after the connection to it was lost. The next server to
// answer may be a standby that lacks the last commits although its position is not older than we
// saw: the position is written after an event is published, and by others too.
func (g *Guard) failed(ctx context.Context, err error) {
	if ctx.Err() == nil && g.cfg.Sessions.Disconnected(err) {
		g.elsewhere()
	}
}

// elsewhere has the database compared again because another server may answer now.
func (g *Guard) elsewhere() {
	g.begin()
	g.wake()
}

// begin begins a new epoch, and reports whether the database was compared before.
func (g *Guard) begin() (compared bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	compared, g.compared = g.compared, false
	g.epoch++
	return compared
}

// Expect is called before a look at the stream of events, and what it returns with what the look
// found: another stream, or one that has lost its last messages, has the database compared again.
// Looks are not concurrent.
func (g *Guard) Expect() (found func(*jetstream.StreamInfo)) {
	seen := g.Position()
	return func(info *jetstream.StreamInfo) {
		switch {
		case seen == ledger.Position{}:
			return // it is yet to be compared
		case seen.Created != info.Created.UnixNano():
			g.streamChanged(seen, "the stream of events was created again")
		case info.State.LastSeq >= seen.Place:
			g.short = 0
			return
		default:
			if g.short++; g.short < shortLooks {
				return
			}
			g.streamChanged(seen, "the stream of events has lost its last messages")
		}
		g.short = 0
	}
}

// streamChanged has the database compared again because the stream of events is not the one in
// which this position was seen.
func (g *Guard) streamChanged(seen ledger.Position, why string) {
	g.mu.Lock()
	if !g.compared || g.seen.Created != seen.Created {
		g.mu.Unlock() // a comparison is under way, or done
		return
	}
	g.compared = false
	g.epoch++
	g.mu.Unlock()
	g.cfg.Log.Error("nothing is served until the database is compared with the stream of events", "why", why)
	g.wake()
}

// wake makes Run look now.
func (g *Guard) wake() {
	select {
	case g.woken <- struct{}{}:
	default: // it is about to look anyway
	}
}
