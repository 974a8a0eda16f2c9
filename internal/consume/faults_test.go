package consume_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestFailBetweenAnyTwoSteps: whichever I/O step of a consumer fails, not done or done and not known to be, and whether the
// process goes on or dies there and another takes over: each message is handled, poison is set aside, all are acknowledged.
func TestFailBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	accounts := testenv.NewAccounts(t)
	must := []string{"PUB $JS.ACK", "PUB $JS.API.CONSUMER.MSG", "SUB _INBOX"}
	testenv.EveryStep(t, must, func(*testing.T) func(context.Context, *testenv.Faults) error {
		place, runs := new(int), 0
		return func(ctx context.Context, faults *testenv.Faults) error {
			runs++
			url, err := accounts.Account(fmt.Sprintf("%p-%d", place, runs))
			if err != nil {
				return err
			}
			r := &faultRun{ctx: ctx, faults: faults, url: url, handled: map[string]int{}, aside: map[string]int{}}
			return r.play()
		}
	})
}

// faultRun is a queue of messages that are consumed.
type faultRun struct {
	ctx    context.Context
	faults *testenv.Faults
	url    string
	js     jetstream.JetStream

	first, second *consumer

	mu             sync.Mutex
	failed         bool
	handled, aside map[string]int
}

// consumer is one that runs.
type consumer struct {
	conn  *nats.Conn
	stop  context.CancelFunc
	ended chan error
}

func (r *faultRun) start(faults *testenv.Faults) (*consumer, error) {
	conn, err := faults.Connect(r.url)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	c := &consumer{conn: conn, ended: make(chan error, 1)}
	faults.Arm()
	// Without the run's deadline: nats.go would wait for each answer until then, and not for 5 s.
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.WithoutCancel(r.ctx))
	go func() {
		c.ended <- consume.Run(ctx, consume.Config{
			Open: func(ctx context.Context) (jetstream.Consumer, error) {
				return js.CreateOrUpdateConsumer(ctx, "Q", jetstream.ConsumerConfig{
					Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second,
				})
			},
			Handle: r.handle,
			SetAside: func(_ context.Context, m *consume.Message, _ consume.Fault) error {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.aside[string(m.Data())]++
				return nil
			},
			Batch: 4, MaxBackoff: 20 * time.Millisecond, Log: faults.Log,
		})
	}()
	return c, nil
}

// handle fails once, and always panics at message 5.
func (r *faultRun) handle(_ context.Context, batch []*consume.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range batch {
		if string(m.Data()) == "5" {
			panic("poison")
		}
		if string(m.Data()) == "9" && !r.failed {
			r.failed = true
			return errors.New("away")
		}
	}
	for _, m := range batch {
		r.handled[string(m.Data())]++
	}
	return nil
}

func (c *consumer) end() error {
	if c == nil {
		return nil
	}
	c.stop()
	err := <-c.ended
	c.conn.Close()
	return err
}

// nurse does what happens in the world after a fault: a dead process is replaced, and time passes, until the broker sends
// again what nobody acknowledged.
func (r *faultRun) nurse() (err error) {
	if r.faults.Struck() == "" {
		return nil
	}
	if r.faults.Dead() && r.second == nil {
		r.first.conn.Close()
		r.first.stop()
		if r.second, err = r.start(testenv.NewFaults(testenv.Fault{})); err != nil {
			return err
		}
	}
	return testenv.Hasten(r.ctx, r.js, "Q", "d")
}

func (r *faultRun) play() (err error) {
	conn, err := nats.Connect(r.url, nats.Timeout(patience))
	if err != nil {
		return err
	}
	defer conn.Close()
	if r.js, err = jetstream.New(conn); err != nil {
		return err
	}
	stream := jetstream.StreamConfig{Name: "Q", Subjects: []string{"q.>"}, Retention: jetstream.WorkQueuePolicy}
	if _, err := r.js.CreateStream(r.ctx, stream); err != nil {
		return err
	}
	if r.first, err = r.start(r.faults); err != nil {
		return err
	}
	var want []string
	for i := range 12 {
		if _, err := r.js.Publish(r.ctx, "q.x", []byte(strconv.Itoa(i))); err != nil {
			return err
		}
		if i != 5 {
			want = append(want, strconv.Itoa(i))
		}
		if i%4 == 3 {
			if err := r.quiet(); err != nil {
				return err
			}
		}
	}
	r.faults.Disarm()
	if err := errors.Join(r.first.end(), r.second.end()); err != nil {
		return err
	}
	return r.check(want)
}

// quiet waits until the queue is empty.
func (r *faultRun) quiet() error {
	for {
		stream, err := r.js.Stream(r.ctx, "Q")
		if err != nil {
			return err
		}
		if stream.CachedInfo().State.Msgs == 0 {
			return nil
		}
		if err := r.nurse(); err != nil {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.ctx.Done():
			return fmt.Errorf("%d messages are left: %w", stream.CachedInfo().State.Msgs, r.ctx.Err())
		}
	}
}

func (r *faultRun) check(want []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range want {
		if r.handled[m] == 0 {
			return fmt.Errorf("message %s is gone, and was never handled", m)
		}
	}
	if len(r.handled) != len(want) || len(r.aside) != 1 || r.aside["5"] == 0 {
		return fmt.Errorf("handled %v, set aside %v, want %v and 5", r.handled, r.aside, slices.Sorted(slices.Values(want)))
	}
	return nil
}
