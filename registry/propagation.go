package registry

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
)

const (
	// floorsFor is how long the consumers' progress is remembered: a client that waits for its rotation asks again
	// and again, and so do others at the same time.
	floorsFor       = 50 * time.Millisecond
	propagateWithin = 2 * time.Second
)

// propagation tells which durables of the invalidation stream have acknowledged a service's last event (§8.1).
type propagation struct {
	js jetstream.JetStream

	mu     sync.Mutex
	at     time.Time
	floors map[string]uint64 // by durable: everything up to this place in the stream is acknowledged
}

// of returns an entry for each durable; while the broker can't tell, there is none.
func (p *propagation) of(ctx context.Context, t events.Target, sequence int64) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, propagateWithin)
	defer cancel()
	known := map[string]bool{}
	place, ok := p.lastEvent(ctx, t, sequence)
	for durable, floor := range p.progress(ctx) {
		known[durable] = ok && floor >= place
	}
	return known
}

// lastEvent returns where in the stream the service's event of this sequence is. The message is our own: only its
// sequence is looked at.
func (p *propagation) lastEvent(ctx context.Context, t events.Target, sequence int64) (place uint64, ok bool) {
	stream, err := p.js.Stream(ctx, events.InvalidationStream)
	if err != nil {
		return 0, false
	}
	last, err := stream.GetLastMsgForSubject(ctx, events.InvalidationSubject+t.String())
	if err != nil {
		return 0, false
	}
	return last.Sequence, events.SequenceOf(last.Data) >= sequence
}

func (p *propagation) progress(ctx context.Context) map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) < floorsFor {
		return p.floors
	}
	stream, err := p.js.Stream(ctx, events.InvalidationStream)
	if err != nil {
		return nil
	}
	floors := map[string]uint64{}
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		if info.Config.Durable != "" {
			floors[info.Config.Durable] = info.AckFloor.Stream
		}
	}
	if list.Err() != nil {
		return nil
	}
	p.floors, p.at = floors, time.Now()
	return floors
}
