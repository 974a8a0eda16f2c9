package restore

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/registry/internal/ledger"
)

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
