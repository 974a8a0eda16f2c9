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

const (
	// heartbeat is how often the broker says that it still knows of our pull. A cluster that loses
	// a node forgets the pulls of that node, and says nothing; two missing heartbeats show it. With
	// nats.go's default of 15 s, every message would wait for half a minute.
	heartbeat  = 2 * time.Second
	pullExpiry = 30 * time.Second // as the library's default
	// The library takes no shorter values.
	leastExpiry    = time.Second
	leastHeartbeat = 500 * time.Millisecond

	// how long the broker may take to refuse a pull; it says nothing if it accepts
	refusalWithin  = time.Second
	giveBackWithin = 500 * time.Millisecond
)

// Pull says how messages of a consumer are fetched: no more and for no longer than it allows.
type Pull struct {
	consumer  jetstream.Consumer
	conn      *nats.Conn
	messages  int
	expiry    time.Duration
	heartbeat time.Duration
}

// NewPull returns a pull of at most so many messages. conn is asked why the broker delivers
// nothing; nil disables the question.
func NewPull(consumer jetstream.Consumer, conn *nats.Conn, messages int) Pull {
	p := Pull{consumer, conn, AtMost(consumer, messages), pullExpiry, heartbeat}
	if limit := consumer.CachedInfo().Config.MaxRequestExpires; limit > 0 {
		p.expiry = max(leastExpiry, min(p.expiry, limit))
	}
	return p
}

// Start starts to fetch messages, until ctx ends.
func (p Pull) Start(ctx context.Context) (*Iterator, error) {
	messages, err := p.consumer.Messages(
		jetstream.PullMaxMessages(p.messages), jetstream.PullExpiry(p.expiry),
		jetstream.PullHeartbeat(max(leastHeartbeat, min(p.heartbeat, p.expiry/2))),
	)
	if err != nil {
		return nil, fmt.Errorf("start pulling: %w", err)
	}
	i := newIterator(ctx, messages, p.refusal)
	i.unacknowledged = p.consumer.CachedInfo().Config.AckPolicy == jetstream.AckNonePolicy
	return i, nil
}

// refusal asks the broker for such a pull, and returns the broker's words if it refuses. It returns
// nil if the broker accepts, or can't be asked.
func (p Pull) refusal() error {
	if p.conn == nil {
		return nil
	}
	info := p.consumer.CachedInfo()
	// With max_bytes of 1 no message comes, because none is so small. With a heartbeat, the broker
	// would not say that too many pulls wait.
	body := fmt.Sprintf(`{"batch":%d,"expires":%d,"max_bytes":1}`, p.messages, p.expiry.Nanoseconds())
	inbox, err := p.conn.SubscribeSync(p.conn.NewInbox())
	if err != nil {
		return nil
	}
	defer func() { _ = inbox.Unsubscribe() }() // this ends the pull, too
	if p.conn.PublishRequest(jetstream.DefaultAPIPrefix+"CONSUMER.MSG.NEXT."+info.Stream+"."+info.Name, inbox.Subject, []byte(body)) != nil {
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

// tooLarge is the broker's answer about a message that the pull would have got.
const tooLarge = "Message Size Exceeds MaxBytes"

var errRefused = errors.New("the broker refuses to deliver")

// ErrReplaced ends the pulling from a stream or a durable that is another one by now, or is gone.
var ErrReplaced = errors.New("the stream or its durable was deleted or created again")

// Iterator returns the messages that a [Pull] fetches. One goroutine calls its methods.
type Iterator struct {
	ctx      context.Context // ends Next
	messages jetstream.MessagesContext
	until    jetstream.NextOpt // ctx ends
	refusal  func() error
	// unacknowledged: the consumer needs no acknowledgements. None are sent then, so the reader
	// needs no permission to send one.
	unacknowledged bool
}

func newIterator(ctx context.Context, messages jetstream.MessagesContext, refusal func() error) *Iterator {
	return &Iterator{ctx: ctx, messages: messages, until: jetstream.NextContext(ctx), refusal: refusal}
}

// Next waits for the next message. If nothing came, not even a heartbeat, it pulls once more, and
// fails only if nothing comes the second time either. So a broker that lost our pull gets another
// one, and a broker that is merely slow doesn't get a new consumer as well. If the broker refuses
// the pull, Next fails at once. If the context has ended, it fails with the cause of that.
func (i *Iterator) Next() (jetstream.Msg, error) {
	msg, err := i.messages.Next(i.until)
	if errors.Is(err, jetstream.ErrNoHeartbeat) {
		if why := i.refusal(); why != nil {
			return nil, fmt.Errorf("pull: %w", why)
		}
		// the broker has forgotten the lost pull; this makes another
		msg, err = i.messages.Next(i.until)
	}
	if err != nil && i.ctx.Err() != nil {
		err = context.Cause(i.ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	return msg, nil
}

// Close ends the pull. If the context has ended, it first gives back what was fetched and not
// returned by Next. That is best effort: without it the broker waits for the acknowledgement's
// deadline before it delivers these messages to another process.
func (i *Iterator) Close() {
	defer i.messages.Stop()
	if i.ctx.Err() == nil || i.unacknowledged {
		return
	}
	i.messages.Drain()
	for {
		msg, err := i.messages.Next(jetstream.NextMaxWait(giveBackWithin))
		if err != nil {
			return
		}
		_ = msg.Nak()
	}
}

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
