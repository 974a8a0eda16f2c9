package registry

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"golang.org/x/sync/singleflight"

	"omiappreg.org/keyrotation/events"
)

const (
	// floorsFor is how long the consumers' progress is remembered: a client that waits for its rotation asks again
	// and again, and so do others at the same time.
	floorsFor       = 50 * time.Millisecond
	propagateWithin = 2 * time.Second
)

// propagation tells which durables of the invalidation stream have acknowledged a service's last event (§8.1). Many may
// ask at a time; the broker is asked once for all of them.
type propagation struct {
	js      jetstream.JetStream
	flights singleflight.Group

	mu     sync.Mutex // never held while the broker is asked
	stream jetstream.Stream
	floors map[string]uint64 // by durable: everything up to this place in the stream is acknowledged
	at     time.Time         // of the floors
}

// of returns an entry for each durable; while the broker can't tell, there is none.
func (p *propagation) of(ctx context.Context, t events.Target, sequence int64) map[string]bool {
	// Others wait for the same answers: they don't end with the one who happened to ask first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), propagateWithin)
	defer cancel()
	known := map[string]bool{}
	stream := p.invalidations(ctx)
	if stream == nil {
		return known
	}
	place, ok := p.lastEvent(ctx, stream, t, sequence)
	for durable, floor := range p.progress(ctx, stream) {
		known[durable] = ok && floor >= place
	}
	return known
}

// invalidations finds the stream, once: that is a question to the broker too.
func (p *propagation) invalidations(ctx context.Context) jetstream.Stream {
	p.mu.Lock()
	stream := p.stream
	p.mu.Unlock()
	if stream != nil {
		return stream
	}
	found, err, _ := p.flights.Do("stream", func() (any, error) { return p.js.Stream(ctx, events.InvalidationStream) })
	if err != nil {
		return nil
	}
	stream, _ = found.(jetstream.Stream)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream = stream
	return stream
}

// lastEvent returns where in the stream the service's event of this sequence is. The messages are our own: only their
// sequence is looked at. An earlier event may have come later, if the replica that committed it died before it was published.
func (p *propagation) lastEvent(ctx context.Context, stream jetstream.Stream, t events.Target, sequence int64) (place uint64, ok bool) {
	subject := events.InvalidationSubject + t.String()
	last, err := stream.GetLastMsgForSubject(ctx, subject)
	if err != nil {
		return 0, false
	}
	if events.SequenceOf(last.Data) >= sequence {
		return last.Sequence, true
	}
	kept := events.InvalidationStreamConfig().MaxMsgsPerSubject
	list, err := jetstreamext.GetBatch(ctx, p.js, events.InvalidationStream, int(kept), jetstreamext.GetBatchSubject(subject))
	if err != nil {
		return 0, false
	}
	for message, err := range list {
		if err != nil {
			return 0, false
		}
		if events.SequenceOf(message.Data) >= sequence {
			place, ok = message.Sequence, true
		}
	}
	return place, ok
}

// progress returns how far each durable is, as it was a moment ago at most.
func (p *propagation) progress(ctx context.Context, stream jetstream.Stream) map[string]uint64 {
	p.mu.Lock()
	floors, at := p.floors, p.at
	p.mu.Unlock()
	if time.Since(at) < floorsFor {
		return floors
	}
	found, err, _ := p.flights.Do("floors", func() (any, error) { return askFloors(ctx, stream) })
	if err != nil {
		return nil
	}
	floors, _ = found.(map[string]uint64)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.floors, p.at = floors, time.Now()
	return floors
}

func askFloors(ctx context.Context, stream jetstream.Stream) (map[string]uint64, error) {
	floors := map[string]uint64{}
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		if info.Config.Durable != "" {
			floors[info.Config.Durable] = info.AckFloor.Stream
		}
	}
	return floors, list.Err()
}
