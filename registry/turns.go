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
	returnRate  = 1000
	returnFirst = 2 * time.Second
	returnEach  = 500 * time.Millisecond
)

// Queue is what all fair queues of a registry share. A fair queue hands over one message of each
// service in turn. A service that is flooded with requests, by anyone, waits only for itself.
//
//	broker ──▶ pull ──▶ a queue for each service ──▶ Next, one of each in turn ──▶ consume
//	             │                 ▲                                                      │
//	             │                 └── no more than inHandEach of each until it is finished ─┘
//	             ├── more than waitingEach of a service: back to the broker, for a while
//	             ├── for a service that may not be bound: sorted first (strangers.go)
//	             └── garbage beyond its budget, or no service: acknowledged and counted
//
// It pulls as fast as the broker delivers, because an honest service's request may be behind the
// flood in the stream.
type Queue struct {
	cfg      QueueConfig
	known    *boundNames
	budget   *budget
	sentBack prometheus.Counter
	current  atomic.Pointer[source] // nil: none was opened yet
}

// QueueConfig says what a fair queue works with.
type QueueConfig struct {
	// Bound returns those of the services that were ever bound.
	Bound func(context.Context, []events.Target) ([]events.Target, error)
	// MasterKeys returns the Master Keys of the apps that exist.
	MasterKeys func(context.Context, []events.AppID) (map[events.AppID]events.PublicKey, error)
	Conn       *nats.Conn // tells why nothing comes; nil disables the question
	Metrics    prometheus.Registerer
	Results    *prometheus.CounterVec // requests by kind and result
	Log        *slog.Logger
}

func NewQueue(cfg QueueConfig) *Queue {
	q := &Queue{
		cfg: cfg, known: newBoundNames(), budget: newBudget(cfg.Results),
		sentBack: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omi_registry_sent_back_total", Help: "Requests that were sent back to be delivered later because too many of their service wait.",
		}),
	}
	cfg.Metrics.MustRegister(q.sentBack, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_requests_waiting_here", Help: "Requests that wait in this process for their turn.",
	}, func() float64 { return float64(q.current.Load().count()) }))
	return q
}

// ErrReplaced ends the pulling from a stream or a durable that is another one by now.
var ErrReplaced = errors.New("the stream or its durable was deleted or created again")

// source is the fair queue. It implements [consume.Source].
type source struct {
	*Queue
	ctx       context.Context // ends the pulling, and all waiting
	stop      context.CancelFunc
	iterator  *consume.Iterator
	ackWait   time.Duration
	created   int64         // when the stream was created, nanoseconds since the Unix epoch
	since     time.Time     // when the durable was created
	delivered uint64        // the durable's count of deliveries at the last message
	pulled    chan struct{} // closed when pull has ended and has given back its messages

	mu      sync.Mutex
	changed sync.Cond // with mu: a queue is ready, there is room again, or the queue ends
	queues  map[events.Target]*serviceQueue
	ready   []*serviceQueue  // queues that Next may take from, each once, in turn
	waiting int              // in all queues
	here    map[uint64]*item // messages that wait or are in hand, by their places in the stream
	returns time.Time        // when the last message that went back returns
	err     error            // why pull ended

	toSort   []*item               // messages to sort
	unsorted int                   // these, and those being sorted
	sorting  map[events.Target]int // the same, by service
	sorter   chan struct{}         // closed when sort has ended
}

// serviceQueue is the queue of one service. The one with a zero target is for all garbage.
type serviceQueue struct {
	target  events.Target
	most    int // limit of inHand
	inHand  int
	waiting []*item
	ready   bool // it is in source.ready
}

// Open starts to pull from the registry's durable on the stream that was created then, until ctx
// ends.
func (q *Queue) Open(ctx context.Context, consumer jetstream.Consumer, created time.Time) (*source, error) {
	info := consumer.CachedInfo()
	s := &source{
		Queue: q, ackWait: info.Config.AckWait, created: created.UnixNano(), since: info.Created, pulled: make(chan struct{}),
		queues: map[events.Target]*serviceQueue{}, here: map[uint64]*item{},
		sorting: map[events.Target]int{}, sorter: make(chan struct{}),
	}
	s.changed.L = &s.mu
	s.ctx, s.stop = context.WithCancel(ctx)
	var err error
	if s.iterator, err = consume.NewPull(consumer, q.cfg.Conn, pullAtMost).Start(s.ctx); err != nil {
		s.stop()
		return nil, err
	}
	context.AfterFunc(s.ctx, s.wake)
	q.current.Store(s)
	go s.pull()
	go s.sort()
	go s.keep()
	return s, nil
}

// wake lets all that wait look again.
func (s *source) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}

// count returns how many requests wait here.
func (s *source) count() int {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting + s.unsorted
}

// Next implements [consume.Source]. It takes one message of each queue in turn.
func (s *source) Next(ctx context.Context, batch []*Message, limit int) ([]*Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := func() bool { return (limit == 0 || len(s.ready) == 0) && s.err == nil && ctx.Err() == nil }
	if idle() {
		stop := context.AfterFunc(ctx, s.wake)
		defer stop()
	}
	for idle() {
		s.changed.Wait()
	}
	if s.err != nil {
		return batch, s.err
	}
	for len(batch) < limit && len(s.ready) > 0 {
		batch = append(batch, &s.dequeue().message)
	}
	return batch, nil
}

// dequeue takes the first message of the queue whose turn it is. The caller holds s.mu.
func (s *source) dequeue() *item {
	sq := s.ready[0]
	s.ready = s.ready[1:]
	it := sq.waiting[0]
	sq.waiting[0] = nil
	sq.waiting = sq.waiting[1:]
	sq.inHand++
	sq.ready = false
	s.lineUp(sq)
	if s.waiting--; s.waiting+s.unsorted == waitingAll-1 {
		s.changed.Broadcast()
	}
	return it
}

// AckWait implements [consume.Source].
func (s *source) AckWait() time.Duration { return s.ackWait }

// lineUp puts a queue that may go on at the end of the line. The caller holds s.mu.
func (s *source) lineUp(sq *serviceQueue) {
	switch {
	case sq.ready:
	case len(sq.waiting) > 0 && sq.inHand < sq.most:
		sq.ready = true
		s.ready = append(s.ready, sq)
		s.changed.Broadcast()
	case len(sq.waiting) == 0 && sq.inHand == 0:
		delete(s.queues, sq.target)
	}
}

// Close implements [consume.Source].
func (s *source) Close() {
	s.stop()
	<-s.pulled
}

// pull takes what the broker delivers, until the context or the broker's iterator ends.
func (s *source) pull() {
	defer close(s.pulled)
	defer s.iterator.Close()
	for {
		s.room()
		msg, err := s.iterator.Next()
		if err == nil {
			err = s.receive(msg)
		}
		if err != nil {
			s.end(err)
			return
		}
	}
}

// room waits until another message may wait here.
func (s *source) room() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.waiting+s.unsorted >= waitingAll && s.ctx.Err() == nil {
		s.changed.Wait()
	}
}

// end lets Next return, and gives back what waits. Giving back is best effort: the broker finds out
// anyway.
func (s *source) end(err error) {
	s.mu.Lock()
	s.err = err
	waiting := s.toSort
	s.toSort = nil
	for _, sq := range s.queues {
		waiting = append(waiting, sq.waiting...)
		sq.waiting = nil
	}
	s.queues, s.ready, s.waiting = map[events.Target]*serviceQueue{}, nil, 0
	s.here = map[uint64]*item{}
	s.changed.Broadcast()
	s.mu.Unlock()
	<-s.sorter
	for _, it := range waiting {
		_ = it.broker.NakWithDelay(0)
	}
}

// receive puts a message into its queue, unless it is garbage beyond the budget or must be sorted
// first.
func (s *source) receive(msg jetstream.Msg) error {
	it, err := newItem(s, msg)
	if err != nil {
		return err
	}
	if it.message.Delivery <= s.delivered {
		return ErrReplaced // it may be another stream, which counts from 1 again
	}
	s.delivered = it.message.Delivery
	target, most := it.target(), inHandEach
	if target.IsZero() {
		most = inHandGarbage
	}
	switch {
	case it.parsed() != nil && it.parsed().Request == nil:
		s.drop(it, Unanswerable)
		return nil
	case it.garbage() && !s.pay(it):
		return nil
	}
	if !s.sortFirst(it) {
		s.enqueue(it, target, most)
	}
	return nil
}

// enqueue puts a message into a queue, unless the queue is full.
func (s *source) enqueue(it *item, target events.Target, most int) {
	full, after := s.add(it, target, most)
	switch {
	case full && target.IsZero():
		s.drop(it, unanswered)
	case full:
		s.sentBack.Inc()
		_ = it.broker.NakWithDelay(after) // if this fails, it returns sooner
	}
}

// add puts a message into its queue. If the queue is full, it returns after which time the message
// may return.
func (s *source) add(it *item, target events.Target, most int) (full bool, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here[it.message.Sequence] != nil {
		return false, 0 // a copy came meanwhile
	}
	if s.err != nil { // the queue ended meanwhile
		_ = it.broker.NakWithDelay(0) // as in end
		return false, 0
	}
	sq := s.queues[target]
	if sq == nil {
		sq = &serviceQueue{target: target, most: most}
		s.queues[target] = sq
	}
	if len(sq.waiting) >= waitingEach {
		return true, s.returnAfter(time.Now())
	}
	it.queue, s.here[it.message.Sequence] = sq, it
	sq.waiting = append(sq.waiting, it)
	s.waiting++
	s.lineUp(sq)
	return false, 0
}

// returnAfter returns the delay for one more message that goes back. The caller holds s.mu.
func (s *source) returnAfter(now time.Time) time.Duration {
	if first := now.Add(returnFirst); s.returns.Before(first) {
		s.returns = first
	}
	s.returns = s.returns.Add(time.Second / returnRate)
	return s.returns.Truncate(returnEach).Sub(now)
}

// pay charges a message's answer to the budget for garbage, and reports whether that was possible.
// Otherwise the message gets no answer, and is acknowledged.
func (s *source) pay(it *item) bool {
	if it.message.Payload.Paid = s.budget.charge(); !it.message.Payload.Paid {
		_ = it.broker.Ack() // as in drop
	}
	return it.message.Payload.Paid
}

// drop acknowledges garbage that gets no answer.
func (s *source) drop(it *item, why string) {
	_ = it.broker.Ack() // if this fails, it is delivered again
	s.budget.drop(why)
}

// keep tells the broker in time that waiting messages and those in hand are still ours, and logs
// what was dropped.
func (s *source) keep() {
	ticker := time.NewTicker(extendEach)
	defer ticker.Stop()
	for {
		select {
		case <-s.pulled:
			return
		case now := <-ticker.C:
			for _, it := range s.due(now) {
				_ = it.InProgress() // it may have been finished just now
			}
			s.budget.tell(s.cfg.Log)
		}
	}
}

// due returns the messages that the broker has not heard of for a while.
func (s *source) due(now time.Time) (due []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range s.here {
		if now.Sub(it.since) >= extendEach/2 {
			it.since = now
			due = append(due, it)
		}
	}
	return due
}

// finish makes room in its queue after a message in hand was finished.
func (s *source) finish(it *item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here[it.message.Sequence] != it {
		return // finished before, or s has ended
	}
	delete(s.here, it.message.Sequence)
	it.queue.inHand--
	s.lineUp(it.queue)
}
