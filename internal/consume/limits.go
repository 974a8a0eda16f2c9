package consume

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A broker, or someone who edits a durable, may limit the pulls: how many messages, and for how
// long. It refuses a larger pull with a status that the client's library keeps to itself; all
// that comes out is that no heartbeat does.

const (
	pullExpiry = 30 * time.Second // the library's own
	// The library takes no shorter ones.
	leastExpiry    = time.Second
	leastHeartbeat = 500 * time.Millisecond

	refusalWithin = time.Second // for the broker to say that it refuses a pull; it says nothing where it doesn't
)

// AtMost returns how many messages may be pulled at a time: so many, or as many as the durable or
// the broker allows.
func AtMost(consumer jetstream.Consumer, messages int) int {
	if info := consumer.CachedInfo(); info != nil && info.Config.MaxRequestBatch > 0 {
		return min(messages, info.Config.MaxRequestBatch)
	}
	return messages
}

// LeastWaiting is how many pulls a durable must allow at a time: each process has two, and those
// of one that was killed count for a while. The broker never changes that of a durable.
const LeastWaiting = 64

// Limits are those settings of a durable that anyone who may edit it can change, and that say how
// it delivers.
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

// inFlightExceeded is the code of nats-server's error (its server/errors.json) for a durable that
// may have too many messages in flight. The last word of its description is how many it may have.
const inFlightExceeded jetstream.ErrorCode = 10121

// Put makes or changes a durable. If the broker allows fewer messages in flight than it is to
// have, it gets as many as that.
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
	// The first answer after a restart of the broker has the time of that in place of the
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

// Pull is how a consumer pulls: no more and no longer than its durable allows.
type Pull struct {
	Messages int
	Expiry   time.Duration
}

// NewPull returns a pull of at most so many messages.
func NewPull(consumer jetstream.Consumer, messages int) Pull {
	p := Pull{AtMost(consumer, messages), pullExpiry}
	if limit := consumer.CachedInfo().Config.MaxRequestExpires; limit > 0 {
		p.Expiry = max(leastExpiry, min(p.Expiry, limit))
	}
	return p
}

func (p Pull) options(heartbeat time.Duration) []jetstream.PullMessagesOpt {
	return []jetstream.PullMessagesOpt{
		jetstream.PullMaxMessages(p.Messages), jetstream.PullExpiry(p.Expiry),
		jetstream.PullHeartbeat(max(leastHeartbeat, min(heartbeat, p.Expiry/2))),
	}
}

// Refusal asks the broker for such a pull, and returns its words if it refuses that; nil: it
// doesn't, or can't be asked.
func (p Pull) Refusal(conn *nats.Conn, consumer jetstream.Consumer) error {
	if conn == nil {
		return nil
	}
	info := consumer.CachedInfo()
	// With max_bytes no message comes, since none is so small. With a heartbeat, the broker would
	// not say that too many pulls wait.
	body := fmt.Sprintf(`{"batch":%d,"expires":%d,"max_bytes":1}`, p.Messages, p.Expiry.Nanoseconds())
	inbox, err := conn.SubscribeSync(conn.NewInbox())
	if err != nil {
		return nil
	}
	defer func() { _ = inbox.Unsubscribe() }() // which ends the pull, too
	if conn.PublishRequest(jetstream.DefaultAPIPrefix+"CONSUMER.MSG.NEXT."+info.Stream+"."+info.Name, inbox.Subject, []byte(body)) != nil {
		return nil
	}
	answer, err := inbox.NextMsg(refusalWithin)
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w: it has no consumer %s, or no leader of it", errRefused, info.Name)
	}
	if err != nil {
		return nil
	}
	status, text := answer.Header.Get("Status"), answer.Header.Get("Description")
	if status == "408" || status == "404" || text == tooLarge {
		return nil
	}
	return fmt.Errorf("%w: %s %s", errRefused, status, text)
}

// tooLarge is what the broker says of a message that the pull would have got.
const tooLarge = "Message Size Exceeds MaxBytes"

var errRefused = errors.New("the broker refuses to deliver")
