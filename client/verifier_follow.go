package client

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/streams"
)

const (
	// askEvery is how often the broker is asked whether anything waits for us.
	askEvery = time.Second
	// streamPoll is how often it looks for a stream that isn't there yet.
	streamPoll = 250 * time.Millisecond
	// forgottenAfter is when the broker drops a consumer without a pull.
	forgottenAfter = 30 * time.Second
)

// follower reads the stream of invalidations in its order, and leaves nothing behind at the broker:
// its consumer has no acknowledgements, lives in the broker's memory, and is made again whenever it
// is lost. The follower then goes on after the last message that was worked off, or from the start
// if the stream is another one.
//
//	OMI_INVALIDATIONS ──▶ ordered consumer ──▶ batch ──▶ verify ──▶ memory
//	                                                       │
//	                                                       └── not to be believed: counted, logged
type follower struct {
	js      jetstream.JetStream
	trust   events.Trust
	filters []string
	names   receiverNames
	apply   func([]events.Invalidation)
	log     *slog.Logger
	now     func() time.Time

	progress streamProgress
	current  atomic.Pointer[orderedReader] // nil until the stream is there
	opened   chan struct{}                 // signals a new consumer to watch
	ignored  atomic.Uint64
}

func newFollower(
	js jetstream.JetStream, cfg VerifierConfig, peers map[events.Target]struct{}, apply func([]events.Invalidation),
) *follower {
	f := &follower{
		js: js, trust: cfg.Trust, names: receiverNames{receiver: cfg.Receiver}, apply: apply, log: cfg.Log, now: cfg.Now, opened: make(chan struct{}, 1),
	}
	for peer := range maps.Keys(peers) {
		f.filters = append(f.filters, events.InvalidationSubject+peer.String())
	}
	slices.Sort(f.filters)
	return f
}

func (f *follower) asOf() time.Time { return f.progress.asOf() }

func (f *follower) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.watch(ctx)
	}()
	err := consume.Run(ctx, consume.Config[struct{}]{Open: f.open, Handle: f.handle, SetAside: f.passOver, Conn: f.js.Conn(), Log: f.log})
	stop()
	<-done
	return err
}

// open makes a consumer, and waits for the stream if need be.
func (f *follower) open(ctx context.Context) (consume.Source[struct{}], error) {
	tick := time.NewTicker(streamPoll)
	defer tick.Stop()
	for waiting := false; ; {
		reader, err := f.create(ctx)
		switch {
		case errors.Is(err, nats.ErrConnectionClosed):
			return nil, backoff.Permanent(err) // it never comes back
		case err == nil:
			return f.begin(ctx, reader)
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return nil, err
		}
		if !waiting {
			waiting = true
			const message = "waiting for the stream " + streams.Invalidations + "; the registry makes it"
			f.log.InfoContext(ctx, message)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// begin starts to read.
func (f *follower) begin(ctx context.Context, reader *orderedReader) (consume.Source[struct{}], error) {
	ctx, reader.giveUp = context.WithCancelCause(ctx)
	f.progress.begin(reader.consumer.CachedInfo().Name)
	if before := f.current.Swap(reader); before != nil {
		before.giveUp(errReopened) // it has ended
	}
	select {
	case f.opened <- struct{}{}:
	default: // watch has not seen the last one yet
	}
	return reader.source(ctx, f.js.Conn())
}

// create makes a consumer whose first message is the last one that was worked off, so that it shows
// whether the stream is the same. A broker that was restored, or lost its last messages in a power
// cut, counts on from where it is.
func (f *follower) create(ctx context.Context) (*orderedReader, error) {
	last := f.progress.place()
	reader, err := f.createAt(ctx, last)
	if err != nil || last.sequence == 0 || reader.consumer.CachedInfo().NumPending > 0 {
		return reader, err
	}
	f.progress.forget() // nothing is left from that message on, not even itself
	return f.createAt(ctx, streamPlace{})
}

func (f *follower) createAt(ctx context.Context, first streamPlace) (*orderedReader, error) {
	cfg := jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		AckPolicy:         jetstream.AckNonePolicy,
		FilterSubjects:    f.filters,
		InactiveThreshold: forgottenAfter,
		MemoryStorage:     true,
		Replicas:          1,
	}
	if first.sequence > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, first.sequence
	}
	consumer, err := f.names.create(ctx, f.js, cfg)
	if err != nil {
		return nil, err
	}
	return &orderedReader{consumer: consumer, first: first, anotherStream: f.progress.forget}, nil
}

// handle applies a batch. It can't fail: it needs only memory.
func (f *follower) handle(ctx context.Context, batch []*consume.Plain) error {
	sorted := incoming.Sort(f.trust, incoming.Batch(batch))
	f.apply(sorted.Events)
	f.ignored.Add(uint64(len(sorted.Refused)))
	for _, r := range sorted.ByReason() {
		r.Log(f.log).WarnContext(ctx, "messages ignored: they can't be believed")
	}
	f.progress.workedOff(batch[len(batch)-1])
	return nil
}

// passOver is for a message that makes the code above panic.
func (f *follower) passOver(_ context.Context, m *consume.Plain, _ consume.Fault) error {
	f.ignored.Add(1)
	f.progress.workedOff(m)
	return nil
}

// watch asks the broker every second how far we are, until ctx ends.
func (f *follower) watch(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-f.opened:
			f.askBroker(ctx, false)
		case <-tick.C:
			f.askBroker(ctx, true)
		case <-ctx.Done():
			return
		}
	}
}

// askBroker raises the time up to which the stream is known, and gives up a consumer that brings
// nothing more.
func (f *follower) askBroker(ctx context.Context, ticked bool) {
	reader := f.current.Load()
	if reader == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	asked := f.now()
	info, err := reader.consumer.Info(ctx)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		reader.giveUp(errForgotten)
	case err != nil: // the broker is unavailable: the consumer's loop logs it
	case f.progress.answered(info, asked):
	case ticked && f.progress.stalled():
		reader.giveUp(errStalled)
	}
}

// Why a consumer is made again.
var (
	errForgotten     = errors.New("the broker has forgotten our place in the stream")
	errStalled       = errors.New("the broker holds messages for us that don't come")
	errGap           = errors.New("a message was lost on its way")
	errAnotherStream = errors.New("the stream is not the one that was read before: it is read from its start")
	errReopened      = errors.New("another consumer is read instead")
)

// orderedReader reads a consumer without acknowledgements, whose messages come in order and without
// a gap, or not at all. The one of nats.go goes on by itself after what it takes for a reconnect.
// It would skip the start of a stream that was made again, and the reader would not notice.
type orderedReader struct {
	consumer jetstream.Consumer
	// first is the message that comes first if the stream is still the same; zero: any.
	first         streamPlace
	anotherStream func()
	giveUp        context.CancelCauseFunc // ends the reading with this error
	count         uint64                  // of messages so far
}

// source starts to read. The source ends with ctx.
func (r *orderedReader) source(ctx context.Context, conn *nats.Conn) (consume.Source[struct{}], error) {
	return consume.NewPull(r.consumer, conn, 2*consume.DefaultBatch).Source(ctx, consume.DefaultBatch, r.accept)
}

// accept returns an error for a message that is not the next one.
func (r *orderedReader) accept(m *consume.Plain) error {
	r.count++
	if m.Delivery != r.count {
		return errGap
	}
	if r.count == 1 && r.first.sequence > 0 && (m.Sequence != r.first.sequence || !m.Stored.Equal(r.first.published)) {
		r.anotherStream()
		return errAnotherStream
	}
	return nil
}
