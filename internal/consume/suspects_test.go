package consume_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
)

// fast keeps the pauses of tests short.
const fast = 8 * time.Millisecond

var errFails = errors.New("it can't be written")

// aside records what was set aside.
type aside struct {
	mu   sync.Mutex
	list []string
	why  []consume.Fault
}

func (a *aside) keep(_ context.Context, m *consume.Plain, why consume.Fault) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list, a.why = append(a.list, string(m.Data)), append(a.why, why)
	return nil
}

func (a *aside) is(want ...string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := slices.Sorted(slices.Values(a.list)); !slices.Equal(got, want) {
		return fmt.Errorf("set aside are %q, want %q", got, want)
	}
	return nil
}

// handled waits until a message was handled.
func (q *queue) handled(payload string) {
	q.t.Helper()
	testenv.Eventually(q.t, patience, payload+" is handled", func() error {
		q.mu.Lock()
		defer q.mu.Unlock()
		if !slices.Contains(q.done, payload) {
			return fmt.Errorf("handled are %v", q.done)
		}
		return nil
	})
}

// alone returns how often a message was tried by itself.
func (q *queue) alone(payload string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, run := range q.runs {
		if len(run) == 1 && run[0] == payload {
			n++
		}
	}
	return n
}

// triedAlone waits until a message was tried by itself so many times.
func (q *queue) triedAlone(payload string, times int) {
	q.t.Helper()
	testenv.Eventually(q.t, patience, payload+" is tried alone", func() error {
		if n := q.alone(payload); n < times {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
}

// TestFailsWhileOthersPass: messages that always fail are set aside while others pass, and all of
// those are handled.
func TestFailsWhileOthersPass(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var lost aside
	refusals := 2 // of SetAside
	q.publish(numbers(20)...)
	q.run(consume.Config[struct{}]{
		MaxBackoff: fast,
		SetAside: func(ctx context.Context, m *consume.Plain, why consume.Fault) error {
			if refusals--; refusals >= 0 {
				return errors.New("can't keep it yet")
			}
			return lost.keep(ctx, m, why)
		},
	}, func(batch []string) error {
		if slices.Contains(batch, "0") || slices.Contains(batch, "7") || slices.Contains(batch, "13") {
			return errFails
		}
		return nil
	})
	testenv.Eventually(t, patience, "the poison is set aside", func() error {
		q.publish("more")
		return lost.is("0", "13", "7")
	})
	for _, why := range lost.why {
		if why.Reason != consume.Fails || why.Detail != errFails.Error() || why.Tries < 5 {
			t.Errorf("set aside for %+v", why)
		}
	}
	got := slices.DeleteFunc(q.empty(), func(p string) bool { return p == "more" })
	slices.Sort(got)
	want := slices.DeleteFunc(numbers(20), func(p string) bool { return p == "0" || p == "7" || p == "13" })
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("handled %v, want %v", got, want)
	}
}

// TestNothingGivenUp: all messages that need the database fail for long, while garbage, which needs
// nothing, passes. Nothing is set aside, and afterwards everything is handled, in its order.
func TestNothingGivenUp(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var lost aside
	var back atomic.Bool
	q.proves = func(p string) bool { return p != "garbage" }
	q.publish(numbers(20)...)
	q.run(consume.Config[struct{}]{Batch: 32, MaxBackoff: fast, SetAside: lost.keep}, func(batch []string) error {
		if len(batch) > 1 && slices.Contains(batch, "20") { // it comes at the end of the outage
			back.Store(true)
		}
		if !back.Load() && slices.ContainsFunc(batch, func(p string) bool { return p != "garbage" }) {
			return errFails
		}
		return nil
	})
	q.triedAlone("19", 3)
	for range 12 {
		tries := q.alone("19")
		q.publish("garbage")
		q.triedAlone("19", tries+1)
	}
	q.handled("garbage")
	q.publish("20")
	got := slices.DeleteFunc(q.empty(), func(p string) bool { return p == "garbage" })
	if !slices.Equal(got, numbers(21)) {
		t.Errorf("handled %v", got)
	}
	if err := lost.is(); err != nil {
		t.Error(err)
	}
}

// TestMoreFailThanAreKept: a long outage with more messages than there may be suspects.
func TestMoreFailThanAreKept(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var lost aside
	var ends atomic.Bool
	back := false
	q.publish(numbers(50)...)
	q.run(consume.Config[struct{}]{
		Batch: 8, MaxBackoff: fast, SetAside: lost.keep, Unavailable: func(error) bool { return true },
	}, func(batch []string) error {
		if len(batch) > 8 {
			t.Errorf("a batch of %d", len(batch))
		}
		// It ends between two rounds: if it ended while messages are tried one by one, later
		// messages would pass earlier ones.
		if back = back || len(batch) > 1 && ends.Load(); !back {
			return errFails
		}
		return nil
	})
	q.triedAlone("7", 10)
	if n := q.alone("8"); n > 0 {
		t.Error("more are suspected than a batch holds")
	}
	ends.Store(true)
	if got := q.empty(); !slices.Equal(got, numbers(50)) {
		t.Errorf("handled %v", got)
	}
	if err := lost.is(); err != nil {
		t.Error(err)
	}
}

// TestMorePoisonThanAreKept: there are more messages that always fail than there may be suspects, and
// they come before all others. Their errors don't say that something is unavailable, so the others
// are tried, too, and handled.
func TestMorePoisonThanAreKept(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var lost aside
	poison := numbers(30)
	q.publish(poison...)
	q.publish("good", "better", "best")
	q.run(consume.Config[struct{}]{Batch: 8, MaxBackoff: fast, SetAside: lost.keep}, func(batch []string) error {
		if slices.ContainsFunc(batch, func(p string) bool { return slices.Contains(poison, p) }) {
			return errFails
		}
		return nil
	})
	q.handled("best")
	testenv.Eventually(t, patience, "the poison is set aside", func() error {
		q.publish("more")
		return lost.is(slices.Sorted(slices.Values(poison))...)
	})
}

// TestBlocksNoOthers: while one message always fails, and there is no evidence against it, others are
// handled as they come.
func TestBlocksNoOthers(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var lost aside
	var fixed atomic.Bool
	q.proves = func(string) bool { return false }
	q.publish("poison")
	q.run(consume.Config[struct{}]{MaxBackoff: fast, SetAside: lost.keep}, func(batch []string) error {
		if !fixed.Load() && slices.Contains(batch, "poison") {
			return errFails
		}
		return nil
	})
	q.triedAlone("poison", 20)
	for _, p := range numbers(20) {
		q.publish(p)
		q.handled(p)
	}
	if err := lost.is(); err != nil {
		t.Error(err)
	}
	fixed.Store(true)
	q.handled("poison")
	q.empty()
}

// TestUnavailableIsBelievedLonger: an error that says that something is unavailable counts for less
// against its message.
func TestUnavailableIsBelievedLonger(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var lost aside
	q.publish("poison")
	q.run(consume.Config[struct{}]{
		MaxBackoff: time.Millisecond, SetAside: lost.keep, Unavailable: func(err error) bool { return errors.Is(err, errFails) },
	}, func(batch []string) error {
		if slices.Contains(batch, "poison") {
			return fmt.Errorf("commit: %w", errFails)
		}
		return nil
	})
	testenv.Eventually(t, patience, "the poison is set aside", func() error {
		q.publish("more")
		return lost.is("poison")
	})
	if n := lost.why[0].Tries; n < 50 {
		t.Errorf("set aside after %d tries", n)
	}
}

// TestSuspectAtShutdown: a suspect goes to the next consumer at once.
func TestSuspectAtShutdown(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.publish("suspect")
	stop := q.run(consume.Config[struct{}]{MaxBackoff: fast}, func([]string) error { return errFails })
	q.triedAlone("suspect", 7)
	stop()
	q.run(consume.Config[struct{}]{}, func([]string) error { return nil })
	q.handled("suspect") // long before its acknowledgement is due, in a minute
	q.empty()
}

// TestSuspectStaysOurs: the broker is told repeatedly that a suspect is still ours. If it sends a
// copy nevertheless, the copy is not handled.
func TestSuspectStaysOurs(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.ackWait = 1500 * time.Millisecond
	var told atomic.Int32
	var fixed, copied atomic.Bool
	spy := testenv.Connect(t, q.broker.URL())
	acks, err := spy.SubscribeSync("$JS.ACK.Q.d.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	q.publish("suspect")
	deliveries := func() uint64 {
		consumer, err := q.js.Consumer(t.Context(), "Q", "d")
		if err != nil {
			return 0
		}
		return consumer.CachedInfo().Delivered.Consumer
	}
	q.run(consume.Config[struct{}]{MaxBackoff: fast}, func([]string) error {
		if told.Load() == 3 && !copied.Swap(true) { // this try hangs until the broker has sent a copy
			testenv.Eventually(t, patience, "a copy comes", func() error {
				if n := deliveries(); n < 2 {
					return fmt.Errorf("%d deliveries", n)
				}
				return nil
			})
		}
		if !fixed.Load() {
			return errFails
		}
		return nil
	})
	for range 3 {
		msg, err := acks.NextMsg(patience)
		if err != nil || string(msg.Data) != "+WPI" {
			t.Fatalf("%v, %v: want progress", msg, err)
		}
		told.Add(1)
	}
	q.triedAlone("suspect", q.alone("suspect")+3)
	testenv.Eventually(t, patience, "a copy came", func() error {
		if !copied.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	fixed.Store(true)
	if got := q.empty(); !slices.Equal(got, []string{"suspect"}) {
		t.Errorf("handled %v", got)
	}
}

// TestLostWithSuspects: the durable is deleted while there are as many suspects as there may be.
// They come again.
func TestLostWithSuspects(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var fixed atomic.Bool
	q.publish(numbers(4)...)
	q.run(consume.Config[struct{}]{Batch: 2, MaxBackoff: fast}, func([]string) error {
		if !fixed.Load() {
			return errFails
		}
		return nil
	})
	q.triedAlone("1", 3)
	if err := q.js.DeleteConsumer(t.Context(), "Q", "d"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "there is a durable again", func() error {
		_, err := q.js.Consumer(t.Context(), "Q", "d")
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
		return nil
	})
	fixed.Store(true)
	got := q.empty()
	slices.Sort(got)
	if !slices.Equal(got, numbers(4)) {
		t.Errorf("handled %v", got)
	}
}

// TestPanicsAmongMany: each message that panics is found, however many there are in a batch.
func TestPanicsAmongMany(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var lost aside
	q.publish(numbers(40)...)
	q.run(consume.Config[struct{}]{MaxBackoff: fast, SetAside: lost.keep}, func(batch []string) error {
		for _, p := range batch {
			if n, _ := strconv.Atoi(p); n%10 == 3 {
				panic("poison " + p)
			}
		}
		return nil
	})
	if got := len(q.empty()); got != 36 {
		t.Errorf("%d were handled", got)
	}
	if err := lost.is("13", "23", "3", "33"); err != nil {
		t.Error(err)
	}
	if why := lost.why[0]; why != (consume.Fault{Reason: consume.Panics, Detail: "poison 3", Tries: 3}) {
		t.Errorf("set aside for %+v", why)
	}
}

// TestNoneOvertakes: a database that is back while messages are tried one by one lets no message
// pass that follows a failed one, neither one by one nor in a part of a large batch.
func TestNoneOvertakes(t *testing.T) {
	t.Parallel()
	const size = 200
	q := newQueue(t)
	q.publish(numbers(size)...)
	about := func(m *consume.Plain) string { return string(m.Data[len(m.Data)-1:]) } // ten services
	var failed bool
	var order []string
	q.run(consume.Config[struct{}]{Batch: size, MaxBackoff: fast, About: about}, func(batch []string) error {
		if !failed && len(batch) > 1 {
			return errFails
		}
		if !failed { // unavailable until one has failed alone, and back then
			failed = true
			return errFails
		}
		order = append(order, batch...)
		return nil
	})
	q.empty()
	last := map[int]int{}
	for _, p := range order {
		n, _ := strconv.Atoi(p)
		if before, ok := last[n%10]; ok && before > n {
			t.Fatalf("%d was handled before %d: %v", before, n, order)
		}
		last[n%10] = n
	}
	if len(order) != size {
		t.Errorf("%d were handled", len(order))
	}
}

// TestPoisonInALargeBatch: one message at fault does not turn a large batch into as many small
// ones, each with a transaction of its own.
func TestPoisonInALargeBatch(t *testing.T) {
	t.Parallel()
	const size = 900 // of 1,000 that the broker gives out
	q := newQueue(t)
	var lost aside
	for _, p := range numbers(size) {
		if _, err := q.js.PublishAsync("q.x", []byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	<-q.js.PublishAsyncComplete()
	q.run(consume.Config[struct{}]{Batch: size, MaxBackoff: fast, SetAside: lost.keep}, func(batch []string) error {
		if batch[0] == "0" {
			testenv.Eventually(t, patience, "all others are delivered", func() error {
				consumer, err := q.js.Consumer(t.Context(), "Q", "d")
				if err != nil {
					return err
				}
				if n := consumer.CachedInfo().Delivered.Consumer; n < size {
					return fmt.Errorf("%d deliveries", n)
				}
				return nil
			})
		}
		if slices.Contains(batch, "500") {
			panic("poison")
		}
		return nil
	})
	got := q.empty()
	slices.Sort(got)
	want := slices.DeleteFunc(numbers(size), func(p string) bool { return p == "500" })
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("handled %d messages, want %d", len(got), len(want))
	}
	if err := lost.is("500"); err != nil {
		t.Error(err)
	}
	if n := len(q.runs); n > size/4 {
		t.Errorf("the handler was called %d times", n)
	}
}
