package registry

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

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

	extendEach = 2 * time.Second // well within the durable's wait for acknowledgements

	// The broker delivers messages that went back before all new ones, so they must return slowly:
	// this many a second. They return in groups, because the broker searches everything that is
	// pending each time one is due.
	comeAgainRate  = 1000
	comeAgainFirst = 2 * time.Second
	comeAgainEach  = 500 * time.Millisecond
)

// fair is what all fair queues of a registry share. A fair queue hands over one message of each
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
type fair struct {
	cfg        fairConfig
	acquainted *acquaintances
	garbage    *budget
	sentBack   prometheus.Counter
	current    atomic.Pointer[turns] // nil: none was opened yet
}

// fairConfig says what a fair queue works with.
type fairConfig struct {
	// bound returns those of the services that were ever bound.
	bound func(context.Context, []events.Target) ([]events.Target, error)
	// masterKeys returns the Master Keys of the apps that exist.
	masterKeys func(context.Context, []events.AppID) (map[events.AppID]events.PublicKey, error)
	conn       *nats.Conn // tells why nothing comes; nil disables the question
	metrics    prometheus.Registerer
	results    *prometheus.CounterVec // requests by kind and result
	log        *slog.Logger
}

func newFair(cfg fairConfig) *fair {
	f := &fair{
		cfg: cfg, acquainted: newAcquaintances(), garbage: newBudget(cfg.results),
		sentBack: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omi_registry_sent_back_total", Help: "Requests that were sent back to be delivered later because too many of their service wait.",
		}),
	}
	cfg.metrics.MustRegister(f.sentBack, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_requests_waiting_here", Help: "Requests that wait in this process for their turn.",
	}, func() float64 { return float64(f.current.Load().count()) }))
	return f
}

// errReplaced ends the pulling from a stream or a durable that is another one by now.
var errReplaced = errors.New("the stream or its durable was deleted or created again")

// turns is the fair queue. It implements [consume.Source].
type turns struct {
	*fair
	ctx       context.Context // ends the pulling, and all waiting
	stop      context.CancelFunc
	iterator  *consume.Iterator
	ackWait   time.Duration
	created   int64         // when the stream was created, nanoseconds since the Unix epoch
	since     time.Time     // when the durable was created
	delivered uint64        // the durable's count of deliveries at the last message
	pulled    chan struct{} // closed when pull has ended and has given back its messages

	mu      sync.Mutex
	changed sync.Cond // with mu: a lane is ready, there is room again, or the queue ends
	lanes   map[events.Target]*lane
	ready   []*lane              // lanes that Next may take from, each once, in turn
	waiting int                  // in all lanes
	known   map[uint64]*delivery // messages that wait or are in hand, by their places in the stream
	again   time.Time            // when the last message that went back returns
	err     error                // why pull ended

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

// open starts to pull from the registry's durable on the stream that was created then, until ctx
// ends.
func (f *fair) open(ctx context.Context, consumer jetstream.Consumer, created time.Time) (*turns, error) {
	info := consumer.CachedInfo()
	t := &turns{
		fair: f, ackWait: info.Config.AckWait, created: created.UnixNano(), since: info.Created, pulled: make(chan struct{}),
		lanes: map[events.Target]*lane{}, known: map[uint64]*delivery{},
		sorting: map[events.Target]int{}, sorter: make(chan struct{}),
	}
	t.changed.L = &t.mu
	t.ctx, t.stop = context.WithCancel(ctx)
	var err error
	if t.iterator, err = consume.NewPull(consumer, f.cfg.conn, pullAtMost).Start(t.ctx); err != nil {
		t.stop()
		return nil, err
	}
	context.AfterFunc(t.ctx, t.wake)
	f.current.Store(t)
	go t.pull()
	go t.sort()
	go t.keep()
	return t, nil
}

// wake lets all that wait look again.
func (t *turns) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed.Broadcast()
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

// Next implements [consume.Source]. It takes one message of each lane in turn.
func (t *turns) Next(ctx context.Context, batch []*requestMessage, limit int) ([]*requestMessage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	idle := func() bool { return (limit == 0 || len(t.ready) == 0) && t.err == nil && ctx.Err() == nil }
	if idle() {
		stop := context.AfterFunc(ctx, t.wake)
		defer stop()
	}
	for idle() {
		t.changed.Wait()
	}
	if t.err != nil {
		return batch, t.err
	}
	for len(batch) < limit && len(t.ready) > 0 {
		batch = append(batch, &t.next().message)
	}
	return batch, nil
}

// next takes the first message of the lane whose turn it is. The caller holds t.mu.
func (t *turns) next() *delivery {
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
	return d
}

// AckWait implements [consume.Source].
func (t *turns) AckWait() time.Duration { return t.ackWait }

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

// Close implements [consume.Source].
func (t *turns) Close() {
	t.stop()
	<-t.pulled
}

// pull takes what the broker delivers, until the context or the broker's iterator ends.
func (t *turns) pull() {
	defer close(t.pulled)
	defer t.iterator.Close()
	for {
		t.room()
		msg, err := t.iterator.Next()
		if err == nil {
			err = t.take(msg)
		}
		if err != nil {
			t.end(err)
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
		_ = d.broker.NakWithDelay(0)
	}
}

// take puts a message into its lane, unless it is garbage beyond the budget or must be sorted
// first.
func (t *turns) take(msg jetstream.Msg) error {
	d, err := newDelivery(t, msg)
	if err != nil {
		return err
	}
	if d.message.Delivery <= t.delivered {
		return errReplaced // it may be another stream, which counts from 1 again
	}
	t.delivered = d.message.Delivery
	target, most := d.target(), inHandEach
	if target.IsZero() {
		most = inHandGarbage
	}
	switch {
	case d.parsed() != nil && d.parsed().Request == nil:
		t.drop(d, unanswerable)
		return nil
	case d.garbage() && !t.pay(d):
		return nil
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
		t.sentBack.Inc()
		_ = d.broker.NakWithDelay(after) // if this fails, it returns sooner
	}
}

// add puts a message into its lane. If the lane is full, it returns after which time the message
// may return.
func (t *turns) add(d *delivery, target events.Target, most int) (full bool, after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[d.message.Sequence] != nil {
		return false, 0 // a copy came meanwhile
	}
	if t.err != nil { // the queue ended meanwhile
		_ = d.broker.NakWithDelay(0) // as in end
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
	d.lane, t.known[d.message.Sequence] = l, d
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

// pay charges a message's answer to the budget for garbage, and reports whether that was possible.
// Otherwise the message gets no answer, and is acknowledged.
func (t *turns) pay(d *delivery) bool {
	if d.message.Payload.paid = t.garbage.charge(); !d.message.Payload.paid {
		_ = d.broker.Ack() // as in drop
	}
	return d.message.Payload.paid
}

// drop acknowledges garbage that gets no answer.
func (t *turns) drop(d *delivery, why string) {
	_ = d.broker.Ack() // if this fails, it is delivered again
	t.garbage.drop(why)
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
			for _, d := range t.due(now) {
				_ = d.InProgress() // it may have been settled just now
			}
			t.garbage.tell(t.cfg.log)
		}
	}
}

// due returns the messages that the broker has not heard of for a while.
func (t *turns) due(now time.Time) (due []*delivery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.known {
		if now.Sub(d.since) >= extendEach/2 {
			d.since = now
			due = append(due, d)
		}
	}
	return due
}

// settled makes room in its lane after a message in hand was settled.
func (t *turns) settled(d *delivery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[d.message.Sequence] != d {
		return // settled before, or t has ended
	}
	delete(t.known, d.message.Sequence)
	d.lane.inHand--
	t.rank(d.lane)
}
