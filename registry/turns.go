package registry

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
)

const (
	inHandEach    = 16 // requests of one service that are in hand at a time
	inHandGarbage = 32 // the same for all messages that no service signed
	// pullAtMost is how many messages may be on their way from the broker, so that a flood waits
	// for the broker and not for the way.
	pullAtMost  = 2048
	waitingEach = 1024 // requests of one service that wait here; more go back to the broker
	waitingAll  = 4096 // the same for all services; more are not pulled. Times 16 KiB of memory

	garbageAnswers = 100         // receipts a second without a readable nonce, or for unbound names
	garbageBurst   = waitingEach // as many as may wait here

	extendEach = 2 * time.Second // well within the durable's wait for acknowledgements

	// The broker delivers messages that went back before all new ones, so they must return slowly:
	// this many a second. They return in groups, because the broker searches everything that is
	// pending each time one is due.
	comeAgainRate  = 1000
	comeAgainFirst = 2 * time.Second
	comeAgainEach  = 500 * time.Millisecond

	giveBackWithin = 500 * time.Millisecond
)

// fairConsumer is the registry's durable with a fair queue: it hands over one message of each
// service in turn. A service that is flooded with requests, by anyone, waits only for itself.
//
//	broker ──▶ pull ──▶ a lane for each service ──▶ Next, one of each lane in turn ──▶ consume
//	             │                 ▲                                                      │
//	             │                 └── no more than inHandEach of a lane until it settles ─┘
//	             ├── more than waitingEach of a service: back to the broker, for a while
//	             ├── for a service that may not be bound: sorted first (strangers.go)
//	             └── garbage beyond its budget, or no service: acknowledged and counted
//
// It pulls as fast as the broker delivers, because an honest service's request may be behind the
// flood in the stream.
type fairConsumer struct {
	jetstream.Consumer
	// Next ends with it, because jetstream hides its options from other packages
	ctx context.Context
	// acquainted knows which services are bound; nil: all are.
	acquainted *acquaintances

	conn *nats.Conn // tells why nothing comes; nil disables the question

	created int64     // when the stream was created, nanoseconds since the Unix epoch
	since   time.Time // when the durable was created
	garbage *rate.Limiter
	metrics *metrics
	log     *slog.Logger
}

// Messages implements [jetstream.Consumer].
func (c *fairConsumer) Messages(opts ...jetstream.PullMessagesOpt) (jetstream.MessagesContext, error) {
	pull := consume.NewPull(c.Consumer, pullAtMost)
	iterator, err := c.Consumer.Messages(append(opts, jetstream.PullMaxMessages(pull.Messages))...)
	if err != nil {
		return nil, err
	}
	return newTurns(c, consume.Patient(iterator, func() error { return pull.Refusal(c.conn, c.Consumer) })), nil
}

// turns is the fair queue. It implements [jetstream.MessagesContext].
type turns struct {
	*fairConsumer
	iterator  jetstream.MessagesContext
	ctx       context.Context
	stop      context.CancelFunc
	delivered uint64        // the durable's count of deliveries at the last message
	pulled    chan struct{} // closed when pull has ended and has given back its messages

	mu      sync.Mutex
	changed sync.Cond // with mu: a lane is ready, there is room again, or the queue ends
	lanes   map[events.Target]*lane
	ready   []*lane              // lanes that Next may take from, each once, in turn
	waiting int                  // in all lanes
	known   map[uint64]*delivery // messages that wait or are in hand, by their places in the stream
	// dropped: garbage that was not answered, by reason, since the last line in the log.
	dropped map[string]int
	again   time.Time // when the last message that went back returns
	err     error     // why pull ended

	strangers []*delivery           // messages to sort
	unsorted  int                   // these, and those being sorted
	sorting   map[events.Target]int // the same, by service
	sorter    chan struct{}         // closed when sort has ended
}

// lane is the queue of one service. The lane with a zero target is for all garbage.
type lane struct {
	target  events.Target
	most    int // limit of inHand
	inHand  int
	waiting []*delivery
	ready   bool // it is in turns.ready
}

func newTurns(c *fairConsumer, iterator jetstream.MessagesContext) *turns {
	t := &turns{
		fairConsumer: c, iterator: iterator, pulled: make(chan struct{}),
		lanes: map[events.Target]*lane{}, known: map[uint64]*delivery{}, dropped: map[string]int{},
		sorting: map[events.Target]int{}, sorter: make(chan struct{}),
	}
	t.changed.L = &t.mu
	t.ctx, t.stop = context.WithCancel(c.ctx)
	context.AfterFunc(t.ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.changed.Broadcast()
	})
	t.metrics.turns.Store(t)
	go t.pull()
	go t.sort()
	go t.keep()
	return t
}

// count returns how many requests wait here.
func (t *turns) count() int {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting + t.unsorted
}

// Next returns the next message in turn. It waits until there is one, the consumer's context ends,
// or pulling fails.
func (t *turns) Next(...jetstream.NextOpt) (jetstream.Msg, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.ready) == 0 && t.err == nil {
		t.changed.Wait()
	}
	if t.err != nil {
		return nil, t.err
	}
	l := t.ready[0]
	t.ready = t.ready[1:]
	d := l.waiting[0]
	l.waiting[0] = nil
	l.waiting = l.waiting[1:]
	l.inHand++
	l.ready = false
	t.rank(l)
	if t.waiting--; t.waiting+t.unsorted == waitingAll-1 {
		t.changed.Broadcast()
	}
	return d, nil
}

// rank puts a lane that may go on at the end of the line. The caller holds t.mu.
func (t *turns) rank(l *lane) {
	switch {
	case l.ready:
	case len(l.waiting) > 0 && l.inHand < l.most:
		l.ready = true
		t.ready = append(t.ready, l)
		t.changed.Broadcast()
	case len(l.waiting) == 0 && l.inHand == 0:
		delete(t.lanes, l.target)
	}
}

// Drain gives back everything that was not handed over.
func (t *turns) Drain() {
	t.stop()
	<-t.pulled
}

// Stop ends the pulling.
func (t *turns) Stop() {
	t.Drain()
	t.iterator.Stop()
}

// pull takes what the broker delivers, until the context or the broker's iterator ends.
func (t *turns) pull() {
	defer close(t.pulled)
	untilDone := jetstream.NextContext(t.ctx)
	for {
		t.room()
		msg, err := t.iterator.Next(untilDone)
		if err == nil {
			err = t.take(msg)
		}
		if err != nil {
			t.end(cmp.Or(context.Cause(t.ctx), err))
			return
		}
	}
}

// room waits until another message may wait here.
func (t *turns) room() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.waiting+t.unsorted >= waitingAll && t.ctx.Err() == nil {
		t.changed.Wait()
	}
}

// end lets Next return, and gives back what waits. Giving back is best effort: the broker finds out
// anyway.
func (t *turns) end(err error) {
	t.mu.Lock()
	t.err = err
	waiting := t.strangers
	t.strangers = nil
	for _, l := range t.lanes {
		waiting = append(waiting, l.waiting...)
		l.waiting = nil
	}
	t.lanes, t.ready, t.waiting = map[events.Target]*lane{}, nil, 0
	t.known = map[uint64]*delivery{}
	t.changed.Broadcast()
	t.mu.Unlock()
	<-t.sorter
	for _, d := range waiting {
		_ = d.Msg.Nak()
	}
	if t.ctx.Err() == nil {
		return
	}
	t.iterator.Drain()
	for {
		msg, err := t.iterator.Next(jetstream.NextMaxWait(giveBackWithin))
		if err != nil {
			return
		}
		_ = msg.Nak()
	}
}

// take puts a message into its lane, unless it is garbage beyond the budget or must be sorted
// first.
func (t *turns) take(msg jetstream.Msg) error {
	d, err := newDelivery(t, msg)
	if err != nil {
		return err
	}
	if d.meta.Sequence.Consumer <= t.delivered {
		return errReplaced // it may be another stream, which counts from 1 again
	}
	t.delivered = d.meta.Sequence.Consumer
	target, most := d.target(), inHandEach
	if target.IsZero() {
		most = inHandGarbage
	}
	switch {
	case d.in != nil && d.in.request == nil:
		t.drop(d, unanswerable)
		return nil
	case d.garbage():
		if d.paid = t.garbage.Allow(); !d.paid {
			t.drop(d, unanswered)
			return nil
		}
	}
	if !t.setAside(d) {
		t.queue(d, target, most)
	}
	return nil
}

// queue puts a message into a lane, unless the lane is full.
func (t *turns) queue(d *delivery, target events.Target, most int) {
	full, after := t.add(d, target, most)
	switch {
	case full && target.IsZero():
		t.drop(d, unanswered)
	case full:
		t.metrics.sentBack.Inc()
		_ = d.Msg.NakWithDelay(after) // if this fails, it returns sooner
	}
}

// add puts a message into its lane. If the lane is full, it returns after which time the message
// may return.
func (t *turns) add(d *delivery, target events.Target, most int) (full bool, after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[d.place] != nil {
		return false, 0 // a copy came meanwhile
	}
	if t.err != nil { // the queue ended meanwhile
		_ = d.Msg.Nak() // as in end
		return false, 0
	}
	l := t.lanes[target]
	if l == nil {
		l = &lane{target: target, most: most}
		t.lanes[target] = l
	}
	if len(l.waiting) >= waitingEach {
		return true, t.comesAgain(time.Now())
	}
	d.lane, t.known[d.place] = l, d
	l.waiting = append(l.waiting, d)
	t.waiting++
	t.rank(l)
	return false, 0
}

// comesAgain returns the delay for one more message that goes back. The caller holds t.mu.
func (t *turns) comesAgain(now time.Time) time.Duration {
	if first := now.Add(comeAgainFirst); t.again.Before(first) {
		t.again = first
	}
	t.again = t.again.Add(time.Second / comeAgainRate)
	return t.again.Truncate(comeAgainEach).Sub(now)
}

// Why garbage is dropped, in the metric and in the log.
const (
	unanswered   = "unanswered"   // there is more than the budget for answers allows
	unanswerable = "unanswerable" // its subject names no service that could read an answer
)

// drop acknowledges garbage that gets no answer.
func (t *turns) drop(d *delivery, why string) {
	_ = d.Msg.Ack() // if this fails, it is delivered again
	t.countDropped(why)
}

func (t *turns) countDropped(why string) {
	t.metrics.requests.WithLabelValues("", why).Inc()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropped[why]++
}

// keep tells the broker in time that waiting messages and those in hand are still ours, and logs
// what was dropped.
func (t *turns) keep() {
	ticker := time.NewTicker(extendEach)
	defer ticker.Stop()
	for {
		select {
		case <-t.pulled:
			return
		case now := <-ticker.C:
			due, dropped := t.due(now)
			for _, d := range due {
				_ = d.InProgress() // it may have been settled just now
			}
			if len(dropped) > 0 {
				t.log.Warn("dropped garbage: it has no nonce or is for an unknown service and exceeds the budget for answers, or its subject names no service",
					unanswered, dropped[unanswered], unanswerable, dropped[unanswerable])
			}
		}
	}
}

// due returns the messages that the broker has not heard of for a while, and what was dropped since
// the last call.
func (t *turns) due(now time.Time) (due []*delivery, dropped map[string]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.known {
		if now.Sub(d.since) >= extendEach/2 {
			d.since = now
			due = append(due, d)
		}
	}
	dropped, t.dropped = t.dropped, map[string]int{}
	return due, dropped
}

// settled makes room in its lane after a message in hand was settled.
func (t *turns) settled(d *delivery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[d.place] != d {
		return // settled before, or t has ended
	}
	delete(t.known, d.place)
	d.lane.inHand--
	t.rank(d.lane)
}
