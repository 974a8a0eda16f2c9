package registry

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

var (
	floodGarbage  = flag.Int("flood.garbage", 3000, "garbage messages of TestFlood")
	floodForged   = flag.Int("flood.forged", 1000, "forged requests of TestFlood, for one service")
	floodRate     = flag.Int("flood.rate", 0, "messages a second of TestFlood's floods; 0: as fast as the broker takes them")
	floodHonest   = flag.Int("flood.honest", 100, "honest rotations a second of TestFlood")
	floodQuiet    = flag.Duration("flood.quiet", 500*time.Millisecond, "how long TestFlood measures the quiet before each flood")
	floodProfile  = flag.String("flood.profile", "", "file for a CPU profile of TestFlood's registry")
	floodServices = flag.Int("flood.services", 64, "honest services of TestFlood")
)

// TestFlood measures what honest services notice of a million garbage messages, and of 100,000 forged requests for one
// service: -flood.garbage=1000000 -flood.forged=100000 -v. It asserts what must hold at any speed: every honest request
// is committed, every forged one answered, nothing else has changed, and nothing is left.
func TestFlood(t *testing.T) {
	t.Parallel()
	f := newFlood(t)
	f.phase("quiet", f.pause)
	f.phase("garbage", func() { f.publish(*floodGarbage, f.garbage) })
	f.phase("quiet", f.pause)
	forged := f.forge(*floodForged)
	f.phase("forged", func() { f.publish(len(forged), func(i int) *nats.Msg { return forged[i] }) })
	f.phase("quiet", f.pause)
	t.Logf("honest: %d rotations/s of %d services, open loop; registry in a process of its own\n%s", *floodHonest, *floodServices, f.table())
	f.check(len(forged))
}

// flood is a registry in a process of its own, with honest services and those that flood it.
type flood struct {
	*world
	replica *child
	crowd   *crowd
	victim  *developer // whom the forged requests are for
	before  int        // changes of the victim
	phases  []phase
}

// phase is what was measured between two points in time.
type phase struct {
	name              string
	published, worked time.Duration
	messages          int
	honest            []time.Duration
	start, most, end  float64 // MiB
	held              int     // the most that the durable had not acknowledged
}

func newFlood(t *testing.T) *flood {
	url := testenv.Database(t, testenv.SQLite)
	f := &flood{world: newWorld(t, url)}
	// So that the registry gets all of the flood, which the broker would refuse.
	limits := StreamLimits{Waiting: int64(*floodForged) + 1, RequestBytes: 1<<20 + 4096*int64(*floodForged+*floodGarbage)}
	if err := EnsureStreamsWithin(t.Context(), f.js, 1, limits); err != nil {
		t.Fatal(err)
	}
	f.replica = startReplica(t, replicaConfig{NATS: f.broker.URL(), Database: url, RotationsPerMinute: -1, Profile: *floodProfile})
	d := newDeveloper(t, f.store, "org.omiappreg.alice", "victim")
	f.crowd = newCrowd(f.world, d)
	f.victim = d
	for range decision.NewestKeys + 2 { // so that each forged one costs all the looks at the newest of the earlier keys
		step := d.rotate
		if d.current.IsZero() {
			step = d.bind
		}
		r := step()
		f.world.publish(r)
		f.answer(r)
		f.before++
	}
	return f
}

func (f *flood) pause() { <-time.After(*floodQuiet) }

// phase runs honest services beside what the flood does, until all is worked off.
func (f *flood) phase(name string, publish func()) {
	f.t.Helper()
	f.replica.resetMost()
	p := phase{name: name}
	p.start, _ = f.replica.memory()
	first := f.last()
	ctx, stop := context.WithCancel(f.t.Context())
	var honest sync.WaitGroup
	honest.Go(func() { f.crowd.run(ctx, *floodHonest) })
	began := time.Now()
	publish()
	p.published = time.Since(began)
	end := f.last()
	testenv.Eventually(f.t, time.Hour, "the flood is worked off", func() error {
		info := f.consumer()
		p.held = max(p.held, info.NumAckPending)
		if info.AckFloor.Stream < end {
			return fmt.Errorf("%d of %d", info.AckFloor.Stream, end)
		}
		return nil
	})
	p.worked = time.Since(began)
	stop()
	honest.Wait()
	p.honest = f.crowd.latencies()
	p.messages = int(f.last()-first) - len(p.honest)
	p.end, p.most = f.replica.memory()
	f.phases = append(f.phases, p)
}

func (f *flood) last() uint64 {
	s, err := f.js.Stream(f.t.Context(), streams.Requests)
	if err != nil {
		f.t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

func (f *flood) consumer() *jetstream.ConsumerInfo {
	consumer, err := f.js.Consumer(f.t.Context(), streams.Requests, streams.RegistryDurable)
	if err != nil {
		f.t.Fatal(err)
	}
	return consumer.CachedInfo()
}

// publish sends a flood at its rate, and returns when the stream has all of it.
func (f *flood) publish(n int, message func(int) *nats.Msg) {
	js, err := jetstream.New(testenv.Connect(f.t, f.broker.URL()), jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		f.t.Fatal(err)
	}
	began := time.Now()
	for i := range n {
		if *floodRate > 0 {
			if ahead := time.Duration(i)*time.Second/time.Duration(*floodRate) - time.Since(began); ahead > 0 {
				<-time.After(ahead)
			}
		}
		testenv.Eventually(f.t, patience, "a message is taken", func() error {
			_, err := js.PublishMsgAsync(message(i))
			return err
		})
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Hour):
		f.t.Fatal("the broker does not take the flood")
	}
}

// garbage is what can't be parsed, for anybody: for honest services, for those that nobody knows, for no service.
func (f *flood) garbage(i int) *nats.Msg {
	text := []string{"", "{", "null", `{"version":"1.0"`, strings.Repeat("[", 100), strings.Repeat("\xff", 500), strings.Repeat("x", 2000)}[i%7]
	to := []string{f.crowd.services[i%len(f.crowd.services)].target.String(), fmt.Sprintf("org.nobody.s-%d", i), "x"}[i/7%3]
	return &nats.Msg{Subject: events.RotationSubject + to, Data: []byte(text)}
}

// forge signs n requests for the victim by a key that it never had.
func (f *flood) forge(n int) []*nats.Msg {
	list := make([]*nats.Msg, n)
	newKey, by := events.GenerateSigningKey(), events.GenerateSigningKey()
	for i := range list {
		r := f.victim.sign(events.Rotation, newKey, by)
		list[i] = &nats.Msg{Subject: r.draft.Subject(), Data: r.payload}
	}
	return list
}

// check asserts that everybody was answered, and that only the honest ones have changed anything.
func (f *flood) check(forged int) {
	f.t.Helper()
	f.clean()
	changes := f.before + f.crowd.changes
	report, err := f.store.Admin().Check(f.t.Context(), &f.trust, time.Now())
	if err != nil || report.Changes != changes {
		f.t.Errorf("%d changes, want %d: %v", report.Changes, changes, err)
	}
	s, err := f.js.Stream(f.t.Context(), streams.Receipts)
	if err != nil {
		f.t.Fatal(err)
	}
	if got := s.CachedInfo().State.LastSeq; got < uint64(changes+forged) {
		f.t.Errorf("%d receipts, want at least %d: one for each change and each forged request", got, changes+forged)
	}
	r := f.victim.rotate()
	f.world.publish(r)
	if receipt := f.answer(r); receipt.Event != events.RequestCommitted {
		f.t.Errorf("the victim rotates after the flood: %+v", receipt)
	}
}

func (f *flood) table() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "phase\tmessages\tpublished/s\tworked off/s\thonest\tp50 ms\tp99 ms\tmax ms\tRSS start\tmost\tend MiB\tunacknowledged\t")
	for _, p := range f.phases {
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%.0f\t%d\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%d\t\n", p.name, p.messages,
			float64(p.messages)/p.published.Seconds(), float64(p.messages)/p.worked.Seconds(), len(p.honest),
			quantile(p.honest, 0.5), quantile(p.honest, 0.99), quantile(p.honest, 1), p.start, p.most, p.end, p.held)
	}
	_ = w.Flush()
	return out.String()
}

// quantile returns the q-th of sorted durations, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(q*float64(len(sorted)-1))].Microseconds()) / 1000
}

// crowd is honest services that rotate in turn. It publishes at its times, whether or not what came before is answered,
// so that a slow answer does not hide the slow ones after it.
type crowd struct {
	*world
	services []*developer
	next     int
	changes  int

	mu      sync.Mutex
	waiting map[events.Nonce]time.Time
	took    []time.Duration
	refused []events.Receipt
}

func newCrowd(w *world, d *developer) *crowd {
	c := &crowd{world: w, waiting: map[events.Nonce]time.Time{}}
	conn := testenv.Connect(w.t, w.broker.URL())
	for i := range *floodServices {
		c.services = append(c.services, d.another(fmt.Sprintf("honest-%d", i)))
		subscription, err := conn.Subscribe(events.ReceiptSubject+c.services[i].target.String(), c.hear)
		if err != nil {
			w.t.Fatal(err)
		}
		_ = subscription.SetPendingLimits(-1, -1)
	}
	if err := conn.Flush(); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range c.services {
		c.send(s.bind())
	}
	c.wait()
	c.latencies()
	return c
}

func (c *crowd) hear(m *nats.Msg) {
	now := time.Now()
	receipt, err := c.trust.Receipt(m.Subject, m.Data)
	c.mu.Lock()
	defer c.mu.Unlock()
	sent, ok := c.waiting[receipt.RequestNonce]
	if err != nil || !ok {
		return // of garbage on its subject
	}
	delete(c.waiting, receipt.RequestNonce)
	c.took = append(c.took, now.Sub(sent))
	if receipt.Event != events.RequestCommitted {
		c.refused = append(c.refused, receipt)
	}
}

func (c *crowd) send(r request) {
	msg := &nats.Msg{Subject: r.draft.Subject(), Data: r.payload, Header: nats.Header{jetstream.MsgIDHeader: {r.draft.MsgID()}}}
	c.mu.Lock()
	c.waiting[r.draft.Nonce] = time.Now()
	c.changes++
	c.mu.Unlock()
	if _, err := c.js.PublishMsgAsync(msg); err != nil {
		c.t.Errorf("publish an honest request: %v", err)
	}
}

// run publishes so many rotations a second until ctx ends, and waits for all answers.
func (c *crowd) run(ctx context.Context, rate int) {
	began := time.Now()
	for i := 0; ; i++ {
		timer := time.NewTimer(time.Duration(i)*time.Second/time.Duration(rate) - time.Since(began))
		select {
		case <-ctx.Done():
			timer.Stop()
			c.wait()
			return
		case <-timer.C:
			c.send(c.services[c.next%len(c.services)].rotate())
			c.next++
		}
	}
}

func (c *crowd) wait() {
	testenv.Eventually(c.t, 10*time.Minute, "every honest request is answered", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.waiting) > 0 {
			return fmt.Errorf("%d are not", len(c.waiting))
		}
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.refused) > 0 {
		c.t.Errorf("%d honest requests were refused, the first: %+v", len(c.refused), c.refused[0])
	}
}

// latencies returns what was measured since the last call, sorted.
func (c *crowd) latencies() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	took := slices.Sorted(slices.Values(c.took))
	c.took = nil
	return took
}
