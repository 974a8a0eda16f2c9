package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
)

const (
	readAtOnce = 512             // messages of a stream that are handled together
	readWithin = 5 * time.Second // for the broker to send some of them
	// readerIdle is after which time the broker drops an idle reader; clients may not delete one
	// (deploy/nats).
	readerIdle     = 30 * time.Second
	progressEvery  = 2 * time.Second // how often long work logs its progress
	silentProgress = 100_000         // messages that are read before the first such line
)

// errCut means that messages were lost on their way, or that the broker has them and doesn't send
// them.
var errCut = errors.New("the broker did not send all messages of the stream")

// streamMessage is one message of a stream.
type streamMessage struct {
	subject string
	payload []byte
	place   uint64 // its sequence in the stream
	stored  time.Time
}

// reading says which part of a stream to read, and what to do with the messages.
type reading struct {
	stream  jetstream.Stream
	from    uint64   // the first sequence
	filters []string // subjects; none: all
	each    func(ctx context.Context, batch []streamMessage) error
}

// read hands over every message that the stream has from a place on, in order, until there are no
// more.
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

// fetch takes the next messages, at least one, and returns how many wait behind them.
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
