package consume_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
)

const patience = time.Minute

// queue is a work queue with one durable, and a record of its handler's calls.
type queue struct {
	t      *testing.T
	broker *testenv.Broker
	js     jetstream.JetStream

	ackWait time.Duration
	proves  func(payload string) bool // which messages are witnesses; nil: all

	mu   sync.Mutex
	done []string
	runs [][]string // each try, in order
}

func newQueue(t *testing.T) *queue {
	t.Helper()
	broker := testenv.NewBroker(t)
	js, err := jetstream.New(testenv.Connect(t, broker.URL()))
	if err != nil {
		t.Fatal(err)
	}
	q := &queue{t: t, broker: broker, js: js, ackWait: time.Minute}
	q.makeStream()
	return q
}

func (q *queue) makeStream() {
	q.t.Helper()
	_, err := q.js.CreateOrUpdateStream(q.t.Context(), jetstream.StreamConfig{
		Name: "Q", Subjects: []string{"q.>"}, Retention: jetstream.WorkQueuePolicy,
	})
	if err != nil {
		q.t.Fatal(err)
	}
}

func (q *queue) publish(payloads ...string) {
	q.t.Helper()
	for _, p := range payloads {
		id := jetstream.WithMsgID(rand.Text()) // its answer may be lost
		testenv.Eventually(q.t, patience, "published", func() error {
			_, err := q.js.Publish(q.t.Context(), "q.x", []byte(p), id)
			return err
		})
	}
}

// opener opens a durable as a source.
func opener(js jetstream.JetStream, durable jetstream.ConsumerConfig, batch int) func(context.Context) (consume.Source[struct{}], error) {
	batch = cmp.Or(batch, consume.DefaultBatch)
	return func(ctx context.Context) (consume.Source[struct{}], error) {
		consumer, err := js.CreateOrUpdateConsumer(ctx, "Q", durable)
		if err != nil {
			return nil, err
		}
		return consume.NewPull(consumer, nil, 2*batch).Source(ctx, batch, nil)
	}
}

func (q *queue) open(ackWait time.Duration, batch int) func(context.Context) (consume.Source[struct{}], error) {
	return opener(q.js, jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait}, batch)
}

// run consumes with this handler until the test ends, or the returned function stops it.
func (q *queue) run(cfg consume.Config[struct{}], handle func(batch []string) error) (stop func()) {
	q.t.Helper()
	cfg.Open = q.open(q.ackWait, cfg.Batch)
	cfg.Handle = func(_ context.Context, batch []*consume.Plain) error {
		var payloads []string
		for _, m := range batch {
			payloads = append(payloads, string(m.Data))
		}
		q.mu.Lock()
		q.runs = append(q.runs, payloads)
		q.mu.Unlock()
		if err := handle(payloads); err != nil {
			return err
		}
		for _, m := range batch {
			if q.proves == nil || q.proves(string(m.Data)) {
				m.Witness()
			}
		}
		q.mu.Lock()
		q.done = append(q.done, payloads...)
		q.mu.Unlock()
		return nil
	}
	cfg.Log = slog.New(slog.NewTextHandler(q.t.Output(), nil))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- consume.Run(ctx, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			q.t.Errorf("Run ended with %v", err)
		}
	})
	q.t.Cleanup(stop)
	return stop
}

// empty waits until nothing is left in the queue, and returns what was handled.
func (q *queue) empty() []string {
	q.t.Helper()
	testenv.Eventually(q.t, patience, "the queue is empty", func() error {
		stream, err := q.js.Stream(q.t.Context(), "Q")
		if err != nil {
			return err
		}
		if n := stream.CachedInfo().State.Msgs; n > 0 {
			return fmt.Errorf("%d messages are left", n)
		}
		return nil
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.done)
}

func numbers(n int) []string {
	var list []string
	for i := range n {
		list = append(list, strconv.Itoa(i))
	}
	return list
}

func TestAcknowledgesInOrder(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.publish(numbers(100)...)
	q.run(consume.Config[struct{}]{Batch: 16}, func(batch []string) error {
		if len(batch) > 16 {
			t.Errorf("a batch of %d", len(batch))
		}
		return nil
	})
	if got := q.empty(); !slices.Equal(got, numbers(100)) {
		t.Errorf("handled %v", got)
	}
}

// TestErrorTriesAgain: what the handler needs is unavailable. The same batch is tried until it is
// back, and nothing is lost or overtaken.
func TestErrorTriesAgain(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.publish(numbers(20)...)
	tries := 0
	q.run(consume.Config[struct{}]{MaxBackoff: 20 * time.Millisecond}, func([]string) error {
		if tries++; tries <= 5 {
			return errors.New("unavailable")
		}
		return nil
	})
	if got := q.empty(); !slices.Equal(got, numbers(20)) {
		t.Errorf("handled %v", got)
	}
	for _, run := range q.runs[1:5] {
		if !slices.Equal(run, q.runs[0]) {
			t.Errorf("tried %v, then %v", q.runs[0], run)
		}
	}
}

// TestPoison: the message that makes the handler panic is set aside, and only that one.
func TestPoison(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var aside []string
	failures := 0
	q.publish(numbers(20)...)
	q.run(consume.Config[struct{}]{
		MaxBackoff: 10 * time.Millisecond,
		SetAside: func(_ context.Context, m *consume.Plain, why consume.Fault) error {
			if failures++; failures == 1 {
				return errors.New("can't keep it yet")
			}
			aside = append(aside, fmt.Sprintf("%s: %s: %s, %d tries", m.Data, why.Reason, why.Detail, why.Tries))
			return nil
		},
	}, func(batch []string) error {
		if slices.Contains(batch, "7") {
			panic("poison")
		}
		return nil
	})
	got := q.empty()
	slices.Sort(got)
	want := slices.Sorted(slices.Values(slices.Concat(numbers(7), numbers(20)[8:])))
	if !slices.Equal(got, want) {
		t.Errorf("handled %v, want %v", got, want)
	}
	if !slices.Equal(aside, []string{"7: panic: poison, 6 tries"}) {
		t.Errorf("set aside %v", aside)
	}
}

// TestShutdownGivesBack: messages that were pulled and not handled go to the next consumer at once,
// long before the acknowledgement's deadline. The batch under way is finished.
func TestShutdownGivesBack(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.publish(numbers(50)...)
	entered, leave := make(chan struct{}), make(chan struct{})
	stop := q.run(consume.Config[struct{}]{Batch: 5}, func([]string) error {
		entered <- struct{}{}
		<-leave
		return nil
	})
	<-entered
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	close(leave)
	for open := true; open; {
		select {
		case <-entered: // a batch that began before the shutdown
		case <-stopped:
			open = false
		}
	}
	q.run(consume.Config[struct{}]{}, func([]string) error { return nil })
	got := q.empty()
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(numbers(50))); !slices.Equal(got, want) {
		t.Errorf("handled %v, each once expected", got)
	}
}

// TestLostDurableAndBroker: the durable is deleted, then the broker restarts; consuming goes on.
func TestLostDurableAndBroker(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.run(consume.Config[struct{}]{MaxBackoff: 50 * time.Millisecond}, func([]string) error { return nil })
	q.publish("a")
	q.empty()
	if err := q.js.DeleteConsumer(t.Context(), "Q", "d"); err != nil {
		t.Fatal(err)
	}
	q.publish("b")
	q.empty()
	q.broker.Stop()
	q.broker.Start()
	q.publish("c")
	if got := q.empty(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("handled %v", got)
	}
}

// TestWaitedTooLong: the broker sends messages that wait for long in our own queue again. The
// copies are not handled, neither in a later batch nor together with their originals.
func TestWaitedTooLong(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{2, 32} {
		t.Run(strconv.Itoa(batch), func(t *testing.T) {
			t.Parallel()
			waitedTooLong(t, batch)
		})
	}
}

func waitedTooLong(t *testing.T, size int) {
	q := newQueue(t)
	q.ackWait = time.Second // messages must be acknowledged within it
	q.publish("0")
	q.run(consume.Config[struct{}]{Batch: size}, func(batch []string) error {
		if batch[0] != "0" {
			return nil
		}
		q.publish(numbers(4)[1:]...)
		testenv.Eventually(t, patience, "the broker sends copies of what waits", func() error {
			consumer, err := q.js.Consumer(t.Context(), "Q", "d")
			if err != nil {
				return err
			}
			if n := consumer.CachedInfo().Delivered.Consumer; n < 6 {
				return fmt.Errorf("%d deliveries", n)
			}
			return nil
		})
		return nil
	})
	got := q.empty()
	if want := numbers(4); !slices.Equal(got, want) {
		t.Errorf("handled %v, want each once, in order", got)
	}
}

// TestKeep: a message that the handler keeps is its own to acknowledge.
func TestKeep(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	kept := make(chan *consume.Plain, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- consume.Run(ctx, consume.Config[struct{}]{
			Open: q.open(0, 0),
			Handle: func(_ context.Context, batch []*consume.Plain) error {
				for _, m := range batch {
					if string(m.Data) == "keep" {
						m.Keep()
						kept <- m
					}
				}
				return nil
			},
			Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
	}()
	q.publish("keep", "go")
	m := <-kept
	testenv.Eventually(t, patience, "the other message is acknowledged", func() error {
		stream, err := q.js.Stream(t.Context(), "Q")
		if err != nil || stream.CachedInfo().State.Msgs != 1 {
			return fmt.Errorf("%w: %+v", err, stream)
		}
		return nil
	})
	if err := m.Ack(); err != nil {
		t.Fatal(err)
	}
	q.empty()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestKeptThroughAShutdown: messages that the handler took over stay its own, even if the rest of
// their batch is given back.
func TestKeptThroughAShutdown(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.publish("keep")
	kept := make(chan *consume.Plain, 1)
	ctx, cancel := context.WithCancel(t.Context())
	err := consume.Run(ctx, consume.Config[struct{}]{
		Open: q.open(0, 0),
		Handle: func(_ context.Context, batch []*consume.Plain) error {
			if !batch[0].Kept() {
				batch[0].Keep()
				kept <- batch[0]
			}
			cancel()
			return errors.New("unavailable")
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := (<-kept).Ack(); err != nil {
		t.Errorf("another one has finished it: %v", err)
	}
	q.empty()
}
