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

// TestFailBetweenAnyTwoSteps: any I/O step of a consumer may fail, be done without an answer, or be
// the last before the process dies and another one takes over. Each message is handled, poison is
// set aside, and all messages are acknowledged.
func TestFailBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	accounts := testenv.NewAccounts(t)
	must := []string{"PUB $JS.ACK", "PUB $JS.API.CONSUMER.MSG", "SUB _INBOX"}
	testenv.EveryStep(t, must, func(*testing.T) func(context.Context, *testenv.Faults) error {
		place, runs := new(int), 0
		return func(ctx context.Context, faults *testenv.Faults) error {
			runs++
			r := &faultRun{ctx: ctx, handled: map[string]int{}, aside: map[string]int{}}
			var err error
			if r.heirs, err = testenv.NewHeirs(accounts, fmt.Sprintf("%p-%d", place, runs), faults); err != nil {
				return err
			}
			if err := errors.Join(r.play(faults), r.heirs.End()); err != nil {
				return err
			}
			return r.check()
		}
	})
}

// faultRun is a queue whose messages are consumed.
type faultRun struct {
	ctx   context.Context
	heirs *testenv.Heirs
	want  []string

	mu             sync.Mutex
	failed         bool
	handled, aside map[string]int
}

// open makes a consumer.
func (r *faultRun) open(conn *nats.Conn, faults *testenv.Faults) (testenv.Program, error) {
	js, err := jetstream.New(conn)
	return testenv.Program{Run: func(ctx context.Context) error {
		return consume.Run(ctx, consume.Config[struct{}]{
			Open:   opener(js, jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second}, 4),
			Handle: r.handle,
			SetAside: func(_ context.Context, m *consume.Plain, _ consume.Fault) error {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.aside[string(m.Data)]++
				return nil
			},
			Batch: 4, MaxBackoff: 20 * time.Millisecond, Log: faults.Log,
		})
	}}, err
}

// handle fails once, and always panics at message 5.
func (r *faultRun) handle(_ context.Context, batch []*consume.Plain) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range batch {
		if string(m.Data) == "5" {
			panic("poison")
		}
		if string(m.Data) == "9" && !r.failed {
			r.failed = true
			return errors.New("unavailable")
		}
	}
	for _, m := range batch {
		r.handled[string(m.Data)]++
	}
	return nil
}

func (r *faultRun) play(faults *testenv.Faults) error {
	h := r.heirs
	h.Open, h.Stream, h.Durable = r.open, "Q", "d"
	stream := jetstream.StreamConfig{Name: "Q", Subjects: []string{"q.>"}, Retention: jetstream.WorkQueuePolicy}
	if _, err := h.JetStream.CreateStream(r.ctx, stream); err != nil {
		return err
	}
	if err := h.Start(r.ctx); err != nil {
		return err
	}
	for i := range 12 {
		if _, err := h.JetStream.Publish(r.ctx, "q.x", []byte(strconv.Itoa(i))); err != nil {
			return err
		}
		if i != 5 {
			r.want = append(r.want, strconv.Itoa(i))
		}
		if i%4 == 3 {
			if err := h.Quiet(r.ctx, r.empty); err != nil {
				return err
			}
		}
	}
	faults.Disarm()
	return nil
}

// empty reports whether the queue is.
func (r *faultRun) empty() (bool, error) {
	stream, err := r.heirs.JetStream.Stream(r.ctx, "Q")
	if err != nil {
		return false, err
	}
	return stream.CachedInfo().State.Msgs == 0, nil
}

func (r *faultRun) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.want {
		if r.handled[m] == 0 {
			return fmt.Errorf("message %s is gone, and was never handled", m)
		}
	}
	if len(r.handled) != len(r.want) || len(r.aside) != 1 || r.aside["5"] == 0 {
		return fmt.Errorf("handled %v, set aside %v, want %v and 5", r.handled, r.aside, slices.Sorted(slices.Values(r.want)))
	}
	return nil
}
