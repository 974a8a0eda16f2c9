package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// patience is for what takes milliseconds on an idle machine.
const patience = 2 * time.Minute

// line is the registry's durable with its fair queue, and no registry behind it.
type line struct {
	t        *testing.T
	conn     *nats.Conn
	js       jetstream.JetStream
	consumer jetstream.Consumer
	results  *prometheus.CounterVec
	master   events.SigningKey // of all apps
}

func newLine(t *testing.T, ackWait time.Duration) *line {
	t.Helper()
	l := &line{t: t, conn: testenv.Connect(t, testenv.NewBroker(t).URL()), master: events.GenerateSigningKey()}
	l.results = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "results"}, []string{"kind", "result"})
	var err error
	if l.js, err = jetstream.New(l.conn); err != nil {
		t.Fatal(err)
	}
	stream := streams.RequestsConfig()
	stream.MaxMsgsPerSubject = 1 << 20
	if _, err := l.js.CreateStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	config := streams.RegistryConsumer()
	config.AckWait = ackWait
	if l.consumer, err = l.js.CreateConsumer(t.Context(), streams.Requests, config); err != nil {
		t.Fatal(err)
	}
	return l
}

// bound tells which of the services are bound.
type bound func(events.Target) bool

func everyone(events.Target) bool { return true }

// open starts pulling, with a budget for so much garbage, until the test ends or it is closed.
func (l *line) open(garbage int, is bound) *source {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // so that Next fails instead of waiting for ever
	l.t.Cleanup(cancel)
	q := New(Config{
		Bound: func(_ context.Context, services []events.Target) (list []events.Target, err error) {
			for _, t := range services {
				if is(t) {
					list = append(list, t)
				}
			}
			return list, nil
		},
		MasterKeys: func(_ context.Context, apps []events.AppID) (map[events.AppID]events.PublicKey, error) {
			keys := map[events.AppID]events.PublicKey{}
			for _, app := range apps {
				keys[app] = l.master.Public()
			}
			return keys, nil
		},
		Metrics: prometheus.NewRegistry(), Results: l.results, Log: slog.New(slog.NewTextHandler(l.t.Output(), nil)),
	})
	q.answers = rate.NewLimiter(0, garbage)
	opened, err := q.Open(ctx, l.consumer, time.Time{})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(opened.Close)
	return opened.(*source)
}

// target returns a service of an app.
func target(t *testing.T, service string) events.Target {
	t.Helper()
	one, err := events.ParseTarget("org.omiappreg.alice." + service)
	if err != nil {
		t.Fatal(err)
	}
	return one
}

// sign stores a request of a service, and returns its subject.
func (l *line) sign(kind events.RequestKind, service string, newKey, by events.SigningKey) (subject string) {
	l.t.Helper()
	d := events.Draft{
		Kind: kind, Target: target(l.t, service), Timestamp: time.Now().Unix(), Nonce: events.NewNonce(), NewKey: newKey, Origin: "registry.example",
	}
	payload, err := d.Sign(by)
	if err != nil {
		l.t.Fatal(err)
	}
	l.store(d.Subject(), string(payload))
	return d.Subject()
}

// put stores n rotations of a service, and returns their subject.
func (l *line) put(service string, n int) (subject string) {
	l.t.Helper()
	key := events.GenerateSigningKey()
	for range n {
		subject = l.sign(events.Rotation, service, key, key)
	}
	return subject
}

func (l *line) store(subject, payload string) {
	l.t.Helper()
	if _, err := l.js.Publish(l.t.Context(), subject, []byte(payload)); err != nil {
		l.t.Fatal(err)
	}
}

// take takes n messages, and returns them by subject. Within a subject they come in the stream's order.
func (l *line) take(queue *source, n int) map[string][]*Message {
	l.t.Helper()
	taken, last := map[string][]*Message{}, map[string]uint64{}
	for range n {
		batch, err := queue.Next(l.t.Context(), nil, 1)
		if err != nil {
			l.t.Fatal(err)
		}
		msg := batch[0]
		if msg.Delivered == 1 && msg.Sequence <= last[msg.Subject] {
			l.t.Fatalf("%s: %d comes after %d", msg.Subject, msg.Sequence, last[msg.Subject])
		}
		last[msg.Subject] = msg.Sequence
		taken[msg.Subject] = append(taken[msg.Subject], msg)
	}
	return taken
}

// empty waits until the broker has nothing left that was not settled.
func (l *line) empty() {
	l.t.Helper()
	testenv.Eventually(l.t, patience, "everything is settled", func() error {
		info, err := l.consumer.Info(l.t.Context())
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
	queue := l.open(0, everyone)
	taken := l.take(queue, inHandEach+3)
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
		if next := l.take(queue, 1); len(next[flooded]) != 1 {
			t.Fatalf("after one is settled: %v", next)
		}
	}
	_ = taken[flooded][0].Nak() // a second time: it makes room only once
	last := l.put("last", 1)
	if next := l.take(queue, 1); len(next[last]) != 1 {
		t.Errorf("more than %d of the flooded service are in hand: %v", inHandEach, next)
	}
}

// TestOverflow: what is behind many requests of one service is reached, since they go back to the broker; and they
// come again, all of them.
func TestOverflow(t *testing.T) {
	t.Parallel()
	const surplus = 50
	l := newLine(t, time.Hour)
	all := inHandEach + waitingEach + surplus
	flooded := l.put("flooded", all)
	honest := l.put("honest", 1)
	queue := l.open(0, everyone)
	taken := l.take(queue, inHandEach+1)
	if len(taken[honest]) != 1 {
		t.Fatal("the honest service's request is not reached")
	}
	sentBack := count(t, queue.sentBack)
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
		for _, msg := range l.take(queue, 1)[flooded] {
			settle(msg)
		}
	}
	l.empty()
}

// TestCopy: a copy of what waits or is in hand, which the broker sends because it hears nothing for long, is passed
// over, and settled with it.
func TestCopy(t *testing.T) {
	t.Parallel()
	l := newLine(t, 100*time.Millisecond)
	slow := l.put("slow", inHandEach+1)
	queue := l.open(0, everyone)
	taken := l.take(queue, inHandEach)[slow]
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
	marker := l.take(queue, 1)[other]
	for _, msg := range append(taken, marker...) {
		_ = msg.Ack()
	}
	rest := l.take(queue, 1)[slow]
	last := l.put("last", 1)
	end := l.take(queue, 1)[last]
	if len(marker) != 1 || len(rest) != 1 || len(end) != 1 {
		t.Fatalf("a copy came: %v, %v, %v", marker, rest, end)
	}
	_, _ = rest[0].Ack(), end[0].Ack()
	l.empty()
}

// TestKept: the broker hears in time that what waits and what is in hand is still ours.
func TestKept(t *testing.T) {
	t.Parallel()
	l := newLine(t, time.Hour)
	heard, err := l.conn.SubscribeSync("$JS.ACK." + streams.Requests + "." + streams.RegistryDurable + ".>")
	if err != nil {
		t.Fatal(err)
	}
	slow := l.put("slow", inHandEach+1)
	queue := l.open(0, everyone)
	taken := l.take(queue, inHandEach)[slow]
	kept := map[string]bool{}
	for len(kept) < inHandEach+1 {
		msg, err := heard.NextMsg(patience)
		if err != nil || string(msg.Data) != "+WPI" {
			t.Fatalf("%d of %d are kept: %v", len(kept), inHandEach+1, err)
		}
		kept[msg.Subject] = true
	}
	_ = taken[0].Ack()
	for _, msg := range append(taken, l.take(queue, 1)[slow]...) {
		_ = msg.Ack()
	}
	l.empty()
}

// TestGarbage: garbage is answered within its budget, and beyond it acknowledged and counted. What has a nonce is no
// garbage, however wrong it is.
func TestGarbage(t *testing.T) {
	t.Parallel()
	const sent, budget = 20, 5
	l := newLine(t, time.Hour)
	garbage := target(t, "garbage").String()
	for i := range sent {
		l.store(events.RotationSubject+garbage, []string{"{", "null", `{"version":"1.0","data":{}}`, ""}[i%4])
	}
	l.store(events.RotationSubject+"X", "{") // names no service: nobody could be answered
	readable := events.RotationSubject + target(t, "readable").String()
	for range budget {
		l.store(readable, `{"version":"1.0","data":{"nonce":"m5n8b2v1"},"signature":"?"}`)
	}
	taken := l.take(l.open(budget, everyone), budget+budget)
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

// TestGivenBack: what waits when a replica stops goes to the next one at once.
func TestGivenBack(t *testing.T) {
	t.Parallel()
	l := newLine(t, time.Hour)
	subject := l.put("s", 2*inHandEach)
	first := l.open(0, everyone)
	for _, msg := range l.take(first, inHandEach)[subject] {
		_ = msg.Nak() // as consume does
	}
	first.Close()
	if batch, err := first.Next(t.Context(), nil, 1); err == nil {
		t.Errorf("%v comes after the end", batch)
	}
	second := l.open(0, everyone)
	for range 2 {
		for _, msg := range l.take(second, inHandEach)[subject] {
			_ = msg.Ack()
		}
	}
	l.empty()
}

// TestStrangers: what is for names that are not bound shares one queue and one budget. Bound
// services have queues of their own, and so has what an app's Master Key binds, with what was sent right behind the binding.
func TestStrangers(t *testing.T) {
	t.Parallel()
	const budget, strangers, bindings = 10, 200, 40
	l := newLine(t, time.Hour)
	busy := l.put("busy", sortFrom+inHandEach) // fills the line, so that the rest is sorted
	for i := range strangers {
		l.put(fmt.Sprintf("s-%d", i), 1)
	}
	for i := range bindings {
		l.sign(events.Binding, fmt.Sprintf("b-%d", i), events.GenerateSigningKey(), l.master)
		l.put(fmt.Sprintf("b-%d", i), 1)
	}
	own := l.put("bound", 3)
	queue := l.open(budget, func(one events.Target) bool { return one == target(t, "busy") || one == target(t, "bound") })
	testenv.Eventually(t, patience, "all is sorted", func() error {
		if n := count(t, l.results.WithLabelValues("", unanswered)); n != strangers-budget {
			return fmt.Errorf("%v of %d are dropped", n, strangers-budget)
		}
		return nil
	})
	taken := l.take(queue, inHandEach+3+budget+2*bindings)
	bound := 0
	for subject := range taken {
		if strings.HasPrefix(subject, events.BindingSubject) {
			bound++
		}
	}
	if len(taken[own]) != 3 || len(taken[busy]) != inHandEach || bound != bindings || len(taken) != 2+2*bindings+budget {
		t.Errorf("%d of the bound service, %d of the busy one, %d bindings; of %d services", len(taken[own]), len(taken[busy]), bound, len(taken))
	}
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
	ours := l.open(0, everyone)
	subject := l.put("a", 1)
	first := l.take(ours, 1)[subject][0]
	if err := ours.receive(first.Acknowledger.(*item).broker.(jetstream.Msg)); !errors.Is(err, consume.ErrReplaced) {
		t.Errorf("it takes the message: %v", err)
	}
}
