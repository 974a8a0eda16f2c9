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
	// readersFor is how long the consumers' progress is remembered: a client that waits for its rotation asks again
	// and again, and so do others at the same time.
	readersFor      = 50 * time.Millisecond
	propagateWithin = 2 * time.Second
	// otherDurables is how many of the durables are told for which no change waits: anybody who may make one makes a record longer.
	otherDurables = 64
)

// propagation tells which durables of the invalidation stream have applied a service's last event (§8.1). Many may
// ask at a time; the broker is asked once for all of them.
type propagation struct {
	js      jetstream.JetStream
	trust   events.Trust // in the registry's own keys
	flights singleflight.Group

	mu      sync.Mutex // never held while the broker is asked
	stream  jetstream.Stream
	readers map[string]reader // by durable
	at      time.Time         // of the readers
}

// reader is a durable: everything up to its floor is acknowledged, and what it says of itself.
type reader struct {
	floor    uint64
	metadata map[string]string
}

// lastEvent is where in the stream a service's last event is, and who signed it.
type lastEvent struct {
	place  uint64
	stored time.Time
	signer events.PublicKey
}

// of returns an entry for each durable for which a change waits, and others; while the broker can't tell, there is none.
func (p *propagation) of(ctx context.Context, t events.Target, sequence int64, waitsFor func(string) bool) (known, others map[string]bool) {
	// Others wait for the same answers: they don't end with the one who happened to ask first.
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

// invalidations finds the stream, once: that is a question to the broker too.
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

// lastEvent finds the service's event of this sequence. Only what the registry signed counts: others may be able to publish.
// An earlier event may have come later, if the replica that committed it died before it was published.
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

// signed returns which of the registry's keys signed a message; false: none, or it is an earlier event.
func (p *propagation) signed(message *jetstream.RawStreamMsg, sequence int64) (events.PublicKey, bool) {
	if events.SequenceOf(message.Data) < sequence {
		return events.PublicKey{}, false
	}
	_, signer, err := p.trust.At(message.Time, message.Sequence).SignedInvalidation(message.Subject, message.Data)
	return signer, err == nil
}

// progress returns how far each durable is, as it was a moment ago at most.
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
