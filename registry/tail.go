package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
)

const (
	readAtOnce     = 512              // messages of a stream that are worked on together
	readWithin     = 5 * time.Second  // for the broker to send some of them
	readerIdle     = 30 * time.Second // the broker forgets a reader after this; nobody is allowed to delete one (deploy/nats)
	progressEvery  = 2 * time.Second  // how often long work says how far it is
	silentProgress = 100_000          // messages that are read without a word
)

// errCut means that messages were lost on their way, or that the broker has them and doesn't send them.
var errCut = errors.New("the broker did not send all messages of the stream")

// streamMessage is one message of a stream.
type streamMessage struct {
	subject string
	payload []byte
	place   uint64 // its sequence in the stream
	stored  time.Time
}

// reading says what of a stream is read, and what is done with it.
type reading struct {
	stream  jetstream.Stream
	from    uint64   // the first sequence
	filters []string // of subjects; none: all
	each    func(ctx context.Context, batch []streamMessage) error
}

// read hands over every message that the stream has from a place on, in its order, until it has no more.
func (r reading) read(ctx context.Context) error {
	cfg := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, r.from),
		AckPolicy: jetstream.AckNonePolicy, FilterSubjects: r.filters,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: readerIdle,
	}
	consumer, err := r.stream.CreateConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read the stream %s: %w", r.stream.CachedInfo().Config.Name, err)
	}
	left := consumer.CachedInfo().NumPending
	for delivered := uint64(0); left > 0; {
		batch, pending, err := fetch(ctx, consumer, &delivered)
		if err != nil {
			return fmt.Errorf("read the stream %s: %w", r.stream.CachedInfo().Config.Name, err)
		}
		if err := r.each(ctx, batch); err != nil {
			return err
		}
		left = pending
	}
	return nil
}

// fetch takes what comes next, at least one message, and returns how many wait behind it.
func fetch(ctx context.Context, consumer jetstream.Consumer, delivered *uint64) (batch []streamMessage, pending uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	messages, err := consumer.Fetch(consume.AtMost(consumer, readAtOnce), jetstream.FetchContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	for msg := range messages.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return nil, 0, err
		}
		*delivered++
		if meta.Sequence.Consumer != *delivered {
			return nil, 0, errCut
		}
		batch = append(batch, streamMessage{msg.Subject(), msg.Data(), meta.Sequence.Stream, meta.Timestamp})
		if pending = meta.NumPending; pending == 0 {
			break // Fetch would wait for more
		}
	}
	if len(batch) == 0 {
		return nil, 0, errors.Join(errCut, messages.Error(), ctx.Err())
	}
	return batch, pending, nil
}
