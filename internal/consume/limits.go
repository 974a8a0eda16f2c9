package consume

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A broker, or someone who edits a durable, may limit the pulls: the number of messages and the
// time. The broker refuses a larger pull with a status that the client's library hides. The only
// visible effect is that no heartbeat comes.

// AtMost returns how many messages may be pulled at a time: the given number, or less if the
// durable or the broker allows less.
func AtMost(consumer jetstream.Consumer, messages int) int {
	if info := consumer.CachedInfo(); info != nil && info.Config.MaxRequestBatch > 0 {
		return min(messages, info.Config.MaxRequestBatch)
	}
	return messages
}

// LeastWaiting is how many concurrent pulls a durable must allow. Each process has two, and those
// of a process that was killed count for a while. The broker never changes this setting of a
// durable.
const LeastWaiting = 64

// Limits are the settings of a durable that control its delivery, and that anyone with the right to
// edit the durable can change.
type Limits struct {
	AckWait, Expires                           time.Duration
	Deliver, AckPending, Batch, Bytes, BackOff int
}

// LimitsOf returns the limits of a durable.
func LimitsOf(cfg jetstream.ConsumerConfig) Limits {
	return Limits{
		AckWait: cfg.AckWait, Expires: cfg.MaxRequestExpires, Deliver: cfg.MaxDeliver, AckPending: cfg.MaxAckPending,
		Batch: cfg.MaxRequestBatch, Bytes: cfg.MaxRequestMaxBytes, BackOff: len(cfg.BackOff),
	}
}

// inFlightExceeded is nats-server's error code (server/errors.json) for a durable that may have too
// many messages in flight. The last word of its description is the limit.
const inFlightExceeded jetstream.ErrorCode = 10121

// Put creates or changes a durable. If the broker allows fewer messages in flight than cfg asks
// for, the durable gets the broker's limit.
func Put(
	ctx context.Context, cfg jetstream.ConsumerConfig, put func(jetstream.ConsumerConfig) (jetstream.Consumer, error),
) (jetstream.Consumer, error) {
	consumer, err := put(cfg)
	if limit, limited := inFlightLimit(err); limited {
		cfg.MaxAckPending = limit
		consumer, err = put(cfg)
	}
	if err != nil {
		return nil, err
	}
	// After a restart of the broker, its first answer has the time of the restart instead of the
	// durable's.
	if _, err := consumer.Info(ctx); err != nil {
		return nil, fmt.Errorf("look at the durable %s: %w", cfg.Durable, err)
	}
	return consumer, nil
}

func inFlightLimit(err error) (limit int, is bool) {
	refused := (*jetstream.APIError)(nil)
	if !errors.As(err, &refused) || refused.ErrorCode != inFlightExceeded {
		return 0, false
	}
	words := strings.Fields(refused.Description)
	limit, err = strconv.Atoi(words[len(words)-1])
	return limit, err == nil && limit > 0
}
