package registry

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"golang.org/x/sync/singleflight"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

const (
	// readersFor is how long the consumers' progress is remembered: a client that waits for its
	// rotation asks again and again, and other clients ask at the same time.
	readersFor      = 50 * time.Millisecond
	propagateWithin = 2 * time.Second
	// otherDurables is how many of the durables are listed for which no change waits. Each makes
	// the record longer, and anyone who may create a durable adds one.
	otherDurables = 64
)

// propagation tells which durables of the invalidation stream have applied a service's last event
// (docs/protocol.md §8.1). Many callers may ask at once; the broker is asked once for all of them.
type propagation struct {
	js      jetstream.JetStream
	trust   events.Trust // in the registry's own keys
	flights singleflight.Group

	mu      sync.Mutex // not held while the broker is asked
	stream  jetstream.Stream
	readers map[string]reader // by durable
	at      time.Time         // when they were read
}

// reader is a durable: its acknowledgement floor, and what it reports about itself.
type reader struct {
	floor    uint64
	metadata map[string]string
}

// lastEvent is the place of a service's last event in the stream, and who signed it.
type lastEvent struct {
	place  uint64
	stored time.Time
	signer events.PublicKey
}

// of returns an entry for each durable for which a change waits, and entries for others. It returns
// none while the broker doesn't answer.
func (p *propagation) of(ctx context.Context, t events.Target, sequence int64, waitsFor func(string) bool) (known, others map[string]bool) {
	// Other callers wait for the same answer: it must not end with the caller that happened to ask
	// first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), propagateWithin)
	defer cancel()
	known = map[string]bool{}
	stream := p.invalidations(ctx)
	if stream == nil {
		return known, nil
	}
	last, ok := p.lastEvent(ctx, stream, t, sequence)
	readers := p.progress(ctx, stream)
	for _, durable := range slices.Sorted(maps.Keys(readers)) {
		r := readers[durable]
		applied := ok && r.floor >= last.place && events.MayHaveApplied(r.metadata, p.trust.Origin(), last.signer, last.stored, last.place)
		switch {
		case waitsFor(durable):
			known[durable] = applied
		case others == nil:
			others = map[string]bool{durable: applied}
		case len(others) < otherDurables:
			others[durable] = applied
		}
	}
	return known, others
}

// invalidations finds the stream once, because that asks the broker too.
func (p *propagation) invalidations(ctx context.Context) jetstream.Stream {
	p.mu.Lock()
	stream := p.stream
	p.mu.Unlock()
	if stream != nil {
		return stream
	}
	found, err, _ := p.flights.Do("stream", func() (any, error) { return p.js.Stream(ctx, streams.Invalidations) })
	if err != nil {
		return nil
	}
	stream, _ = found.(jetstream.Stream)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream = stream
	return stream
}

// lastEvent finds the service's event with this sequence. Only events that the registry signed
// count: others may be able to publish. An earlier event may come later, if the replica that
// committed it died before it was published.
func (p *propagation) lastEvent(ctx context.Context, stream jetstream.Stream, t events.Target, sequence int64) (lastEvent, bool) {
	subject := events.InvalidationSubject + t.String()
	last, err := stream.GetLastMsgForSubject(ctx, subject)
	if err != nil {
		return lastEvent{}, false
	}
	if signer, ok := p.signed(last, sequence); ok {
		return lastEvent{last.Sequence, last.Time, signer}, true
	}
	kept := streams.InvalidationsConfig().MaxMsgsPerSubject
	list, err := jetstreamext.GetBatch(ctx, p.js, streams.Invalidations, int(kept), jetstreamext.GetBatchSubject(subject))
	if err != nil {
		return lastEvent{}, false
	}
	var found lastEvent
	for message, err := range list {
		if err != nil {
			return lastEvent{}, false
		}
		if signer, ok := p.signed(message, sequence); ok {
			found = lastEvent{message.Sequence, message.Time, signer}
		}
	}
	return found, found.place > 0
}

// signed returns which of the registry's keys signed a message; false: none did, or it is an
// earlier event.
func (p *propagation) signed(message *jetstream.RawStreamMsg, sequence int64) (events.PublicKey, bool) {
	if events.SequenceOf(message.Data) < sequence {
		return events.PublicKey{}, false
	}
	_, signer, err := p.trust.At(message.Time, message.Sequence).SignedInvalidation(message.Subject, message.Data)
	return signer, err == nil
}

// progress returns how far each durable is. The answer is at most a moment old.
func (p *propagation) progress(ctx context.Context, stream jetstream.Stream) map[string]reader {
	p.mu.Lock()
	readers, at := p.readers, p.at
	p.mu.Unlock()
	if time.Since(at) < readersFor {
		return readers
	}
	found, err, _ := p.flights.Do("readers", func() (any, error) { return askReaders(ctx, stream) })
	if err != nil {
		return nil
	}
	readers, _ = found.(map[string]reader)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers, p.at = readers, time.Now()
	return readers
}

func askReaders(ctx context.Context, stream jetstream.Stream) (map[string]reader, error) {
	readers := map[string]reader{}
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		if info.Config.Durable != "" {
			readers[info.Config.Durable] = reader{info.AckFloor.Stream, info.Config.Metadata}
		}
	}
	return readers, list.Err()
}
