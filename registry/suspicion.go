package registry

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// shortLooks is how many looks in a row must find fewer events than were there: a new leader of a
// cluster may say so once.
const shortLooks = 2

// Suspect starts a new epoch: the database is compared again before anything is served.
func (f *fence) Suspect(why string) {
	f.mu.Lock()
	told := !f.compared
	f.compared = false
	f.doubts++
	f.mu.Unlock()
	if told {
		return
	}
	f.log.Error("the database is not as this registry left it: was it restored from a backup? Nothing is served until it is compared with the stream of events", "why", why)
	f.wake()
}

// doubt has the database compared again after the connection to it failed. The next server to
// answer may be a standby that lacks the last commits although its position is not older than we
// saw: the position is written after an event is published, and by others too.
func (f *fence) doubt(ctx context.Context, err error) {
	if ctx.Err() != nil || !f.store.db.Disconnected(err) {
		return
	}
	f.elsewhere()
}

// elsewhere has the database compared again because another server may answer now.
func (f *fence) elsewhere() {
	f.mu.Lock()
	f.compared = false
	f.doubts++
	f.mu.Unlock()
	f.wake()
}

// Expect is called before a look at the stream of events, and what it returns with what the look
// found: another stream, or one that has lost its last messages, has the database compared again.
// Looks are not concurrent.
func (f *fence) Expect() (found func(*jetstream.StreamInfo)) {
	seen := f.Position()
	return func(info *jetstream.StreamInfo) {
		switch {
		case seen == ledger.Position{}:
			return // it is yet to be compared
		case seen.Created != info.Created.UnixNano():
			f.streamChanged(seen, "the stream of events was created again")
		case info.State.LastSeq >= seen.Place:
			f.short = 0
			return
		default:
			if f.short++; f.short < shortLooks {
				return
			}
			f.streamChanged(seen, "the stream of events has lost its last messages")
		}
		f.short = 0
	}
}

// streamChanged has the database compared again because the stream of events is not the one in
// which this position was seen.
func (f *fence) streamChanged(seen ledger.Position, why string) {
	f.mu.Lock()
	if !f.compared || f.seen.Created != seen.Created {
		f.mu.Unlock() // a comparison is under way, or done
		return
	}
	f.compared = false
	f.doubts++
	f.mu.Unlock()
	f.log.Error("nothing is served until the database is compared with the stream of events", "why", why)
	f.wake()
}

// wake makes look run now.
func (f *fence) wake() {
	select {
	case f.woken <- struct{}{}:
	default: // look is about to run anyway
	}
}
