package registry

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// line is the registry's durable with its turns, and no registry behind it.
type line struct {
	*world
	consumer jetstream.Consumer
	results  *prometheus.CounterVec
	developer
}

func newLine(t *testing.T, ackWait time.Duration) *line {
	t.Helper()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	if err := EnsureStreamsWithin(t.Context(), w.js, 1, StreamLimits{Waiting: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	config := streams.RegistryConsumer()
	config.AckWait = ackWait
	consumer, err := w.js.CreateConsumer(t.Context(), streams.Requests, config)
	if err != nil {
		t.Fatal(err)
	}
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "s")
	d.current = events.GenerateSigningKey()
	return &line{world: w, consumer: consumer, results: newMetrics(prometheus.NewRegistry()).requests, developer: *d}
}

// turns starts pulling, with a budget for so much garbage, until the test ends or it is stopped.
func (l *line) turns(garbage int) *source {
	l.world.t.Helper()
	return l.turnsOf(garbage, func(_ context.Context, services []events.Target) ([]events.Target, error) { return services, nil })
}

// turnsOf is turns where not every service is bound.
func (l *line) turnsOf(garbage int, bound func(context.Context, []events.Target) ([]events.Target, error)) *source {
	l.world.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // so that Next fails instead of waiting for ever
	l.world.t.Cleanup(cancel)
	f := NewQueue(QueueConfig{
		Bound: bound, MasterKeys: l.world.store.masterKeys, Metrics: prometheus.NewRegistry(), Results: l.results, Log: testLog(l.world.t),
	})
	f.budget.answers = rate.NewLimiter(0, garbage)
	turns, err := f.Open(ctx, l.consumer, time.Time{})
	if err != nil {
		l.world.t.Fatal(err)
	}
	l.world.t.Cleanup(turns.Close)
	return turns
}

// put stores n rotations of a service, and returns its subject.
func (l *line) put(service string, n int) (subject string) {
	l.world.t.Helper()
	d := l.another(service)
	d.current = events.GenerateSigningKey()
	for range n {
		r := d.sign(events.Rotation, d.current, d.current)
		subject = r.draft.Subject()
		l.store(subject, string(r.payload))
	}
	return subject
}

func (l *line) store(subject, payload string) {
	l.world.t.Helper()
	if _, err := l.js.Publish(l.world.t.Context(), subject, []byte(payload)); err != nil {
		l.world.t.Fatal(err)
	}
}

// take takes n messages, and returns them by subject. Within a subject they come in the stream's order.
func (l *line) take(turns *source, n int) map[string][]*Message {
	l.world.t.Helper()
	taken, last := map[string][]*Message{}, map[string]uint64{}
	for range n {
		batch, err := turns.Next(l.world.t.Context(), nil, 1)
		if err != nil {
			l.world.t.Fatal(err)
		}
		msg := batch[0]
		if msg.Delivered == 1 && msg.Sequence <= last[msg.Subject] {
			l.world.t.Fatalf("%s: %d comes after %d", msg.Subject, msg.Sequence, last[msg.Subject])
		}
		last[msg.Subject] = msg.Sequence
		taken[msg.Subject] = append(taken[msg.Subject], msg)
	}
	return taken
}

// empty waits until the broker has nothing left that was not settled.
func (l *line) empty() {
	l.world.t.Helper()
	testenv.Eventually(l.world.t, patience, "everything is settled", func() error {
		info, err := l.consumer.Info(l.world.t.Context())
		if err == nil && info.NumPending+uint64(info.NumAckPending) > 0 {
			err = fmt.Errorf("%d wait, %d are not acknowledged", info.NumPending, info.NumAckPending)
		}
		return err
	})
}

// TestTurns: of a service that sends many requests only so many are in hand at a time; others pass it, and each is
// in its own order.
func TestTurns(t *testing.T) {
	t.Parallel()
	l := newLine(t, time.Hour)
	flooded := l.put("flooded", 10*inHandEach)
	honest := l.put("honest", 3)
	turns := l.turns(0)
	taken := l.take(turns, inHandEach+3)
	if len(taken[flooded]) != inHandEach || len(taken[honest]) != 3 {
		t.Fatalf("%d of the flooded service and %d of the honest one are in hand", len(taken[flooded]), len(taken[honest]))
	}
	for i, settle := range []func(*Message) error{
		(*Message).Ack, (*Message).Nak,
		func(m *Message) error { return m.TermWithReason("test") },
		func(m *Message) error { return m.NakWithDelay(time.Hour) },
	} {
		if err := settle(taken[flooded][i]); err != nil {
			t.Fatal(err)
		}
		if next := l.take(turns, 1); len(next[flooded]) != 1 {
			t.Fatalf("after one is settled: %v", next)
		}
	}
	_ = taken[flooded][0].Nak() // a second time: it makes room only once
	last := l.put("last", 1)
	if next := l.take(turns, 1); len(next[last]) != 1 {
		t.Errorf("more than %d of the flooded service are in hand: %v", inHandEach, next)
	}
}

// TestTurnsOverflow: what is behind many requests of one service is reached, since they go back to the broker; and they
// come again, all of them.
func TestTurnsOverflow(t *testing.T) {
	t.Parallel()
	const surplus = 50
	l := newLine(t, time.Hour)
	all := inHandEach + waitingEach + surplus
	flooded := l.put("flooded", all)
	honest := l.put("honest", 1)
	turns := l.turns(0)
	taken := l.take(turns, inHandEach+1)
	if len(taken[honest]) != 1 {
		t.Fatal("the honest service's request is not reached")
	}
	sentBack := count(t, turns.sentBack)
	info, err := l.consumer.Info(t.Context()) // where this took seconds, some have come again already
	if err != nil {
		t.Fatal(err)
	}
	if most := info.Delivered.Consumer - waitingEach - 1; sentBack < surplus || sentBack > float64(most) {
		t.Errorf("%v were sent back, want %d, or a few more that came before there was room, but %d at most", sentBack, surplus, most)
	}
	_ = taken[honest][0].Ack()
	seen := map[uint64]bool{}
	settle := func(msg *Message) {
		if msg.Subject != flooded {
			t.Fatal(msg.Subject)
		}
		seen[msg.Sequence] = true
		if err := msg.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	for _, msg := range taken[flooded] {
		settle(msg)
	}
	for len(seen) < all {
		for _, msg := range l.take(turns, 1)[flooded] {
			settle(msg)
		}
	}
	l.empty()
}

// TestTurnsCopy: a copy of what waits or is in hand, which the broker sends because it hears nothing for long, is passed
// over, and settled with it.
func TestTurnsCopy(t *testing.T) {
	t.Parallel()
	l := newLine(t, 100*time.Millisecond)
	slow := l.put("slow", inHandEach+1)
	turns := l.turns(0)
	taken := l.take(turns, inHandEach)[slow]
	testenv.Eventually(t, patience, "copies come", func() error {
		if info, err := l.consumer.Info(t.Context()); err != nil || info.Delivered.Consumer < 3*uint64(inHandEach) {
			return errors.Join(err, errors.New("none yet"))
		}
		return nil
	})
	// From now on no copies come: one that is on its way when the message is settled is for package consume to pass over.
	config := l.consumer.CachedInfo().Config
	config.AckWait = time.Hour
	if _, err := l.js.UpdateConsumer(t.Context(), streams.Requests, config); err != nil {
		t.Fatal(err)
	}
	other := l.put("other", 1) // it comes behind them
	marker := l.take(turns, 1)[other]
	for _, msg := range append(taken, marker...) {
		_ = msg.Ack()
	}
	rest := l.take(turns, 1)[slow]
	last := l.put("last", 1)
	end := l.take(turns, 1)[last]
	if len(marker) != 1 || len(rest) != 1 || len(end) != 1 {
		t.Fatalf("a copy came: %v, %v, %v", marker, rest, end)
	}
	_, _ = rest[0].Ack(), end[0].Ack()
	l.empty()
}

// TestTurnsKept: the broker hears in time that what waits and what is in hand is still ours.
func TestTurnsKept(t *testing.T) {
	t.Parallel()
	l := newLine(t, time.Hour)
	heard, err := l.conn.SubscribeSync("$JS.ACK." + streams.Requests + "." + streams.RegistryDurable + ".>")
	if err != nil {
		t.Fatal(err)
	}
	slow := l.put("slow", inHandEach+1)
	turns := l.turns(0)
	taken := l.take(turns, inHandEach)[slow]
	kept := map[string]bool{}
	for len(kept) < inHandEach+1 {
		msg, err := heard.NextMsg(patience)
		if err != nil || string(msg.Data) != "+WPI" {
			t.Fatalf("%d of %d are kept: %v", len(kept), inHandEach+1, err)
		}
		kept[msg.Subject] = true
	}
	_ = taken[0].Ack()
	for _, msg := range append(taken, l.take(turns, 1)[slow]...) {
		_ = msg.Ack()
	}
	l.empty()
}

// TestTurnsGarbage: garbage is answered within its budget, and beyond it acknowledged and counted. What has a nonce is no
// garbage, however wrong it is.
func TestTurnsGarbage(t *testing.T) {
	t.Parallel()
	const sent, budget = 20, 5
	l := newLine(t, time.Hour)
	garbage := l.another("garbage").target.String()
	for i := range sent {
		l.store(events.RotationSubject+garbage, []string{"{", "null", `{"version":"1.0","data":{}}`, ""}[i%4])
	}
	l.store(events.RotationSubject+"X", "{") // names no service: nobody could be answered
	readable := events.RotationSubject + l.another("readable").target.String()
	for range budget {
		l.store(readable, `{"version":"1.0","data":{"nonce":"m5n8b2v1"},"signature":"?"}`)
	}
	taken := l.take(l.turns(budget), budget+budget)
	if len(taken[events.RotationSubject+garbage]) != budget || len(taken[readable]) != budget {
		t.Errorf("taken: %v", taken)
	}
	for result, want := range map[string]float64{"unanswered": sent - budget, "unanswerable": 1} {
		if got := count(t, l.results.WithLabelValues("", result)); got != want {
			t.Errorf("%v were %s, want %v", got, result, want)
		}
	}
	for _, list := range taken {
		for _, msg := range list {
			_ = msg.Ack()
		}
	}
	l.empty()
}

// TestTurnsGivenBack: what waits when a replica stops goes to the next one at once.
func TestTurnsGivenBack(t *testing.T) {
	t.Parallel()
	l := newLine(t, time.Hour)
	subject := l.put("s", 2*inHandEach)
	first := l.turns(0)
	for _, msg := range l.take(first, inHandEach)[subject] {
		_ = msg.Nak() // as consume does
	}
	first.Close()
	if batch, err := first.Next(t.Context(), nil, 1); err == nil {
		t.Errorf("%v comes after the end", batch)
	}
	second := l.turns(0)
	for range 2 {
		for _, msg := range l.take(second, inHandEach)[subject] {
			_ = msg.Ack()
		}
	}
	l.empty()
}

func count(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// TestAnotherDurable: a message of a durable that has delivered less than this one is of another durable, and perhaps of another
// stream. It ends the pulling, so that its place is not taken for one of the earlier stream.
func TestAnotherDurable(t *testing.T) {
	t.Parallel()
	l := newLine(t, time.Minute)
	ours := l.turns(0)
	subject := l.put("a", 1)
	first := l.take(ours, 1)[subject][0]
	if err := ours.receive(first.Acknowledger.(*item).broker.(jetstream.Msg)); !errors.Is(err, ErrReplaced) {
		t.Errorf("it takes the message: %v", err)
	}
}
