// Package queue is the registry's fair queue. It takes requests from the registry's durable and
// hands over one of each service in turn. A service that is flooded with requests, by anyone, waits
// only for itself.
//
//	broker ──▶ pull ──▶ a queue for each service ──▶ Next, one of each in turn ──▶ consume
//	             │                 ▲                                                  │
//	             │                 └── no more than 16 of each, until one is finished ┘
//	             ├── more than 1,024 of a service: back to the broker, for a while
//	             ├── for a service that may not be bound: sorted first (bound.go)
//	             └── garbage beyond its budget, or no service: acknowledged and counted
//
// It pulls as fast as the broker delivers, because an honest service's request may be behind the
// flood in the stream. At most 4,096 requests wait here.
//
// The messages of one service keep their order. Each [Message] brings its request parsed, with its
// place in the stream.
package queue

import (
	"context"
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

// Queue is what outlives the durable: which services are bound, the budget for garbage, and the
// metrics. Its methods are safe for concurrent use.
type Queue struct {
	*budget
	cfg      Config
	known    *boundNames
	sentBack prometheus.Counter
	current  atomic.Pointer[source] // nil: none was opened yet
}

// Config says what a queue works with.
type Config struct {
	// Bound returns those of the services that were ever bound.
	Bound func(context.Context, []events.Target) ([]events.Target, error)
	// MasterKeys returns the Master Keys of the apps that exist.
	MasterKeys func(context.Context, []events.AppID) (map[events.AppID]events.PublicKey, error)
	// Conn is asked why the broker delivers nothing. Nil disables the question.
	Conn    *nats.Conn
	Metrics prometheus.Registerer
	// Results counts requests by kind and result. The queue adds what it doesn't hand over.
	Results *prometheus.CounterVec
	Log     *slog.Logger
}

// New returns a queue, and registers its metrics.
func New(cfg Config) *Queue {
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

// source is the queue while the durable is open. It implements [consume.Source].
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

// Open starts to pull from the registry's durable on the stream that was created then. The source
// ends with ctx and the cause of that, or when the durable turns out to be another one.
func (q *Queue) Open(ctx context.Context, consumer jetstream.Consumer, created time.Time) (consume.Source[Request], error) {
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
