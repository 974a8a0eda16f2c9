package registry

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestPublisher: whether the broker takes atomic batches or not, and whatever it has already, each message is in its stream
// once, and what is not there is not said to be.
func TestPublisher(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		atomic  int64 // batches that are to be atomic
		prepare func(*publisherTest)
		batched uint64 // the events that came in a batch
		later   uint64 // the receipts that did
		missing int
	}{
		{name: "each by itself"},
		{name: "atomic", atomic: 100, batched: 1100, later: 1100},
		{name: "one is there already", atomic: 100, prepare: func(p *publisherTest) { p.mustSend(p.messages[100:101]) }, batched: 100},
		{name: "streams that take no batches", atomic: 100, prepare: func(p *publisherTest) { p.streams(false) }},
		{name: "no stream of receipts", atomic: 100, prepare: func(p *publisherTest) { p.drop(streams.Receipts) }, batched: 1100, missing: 1100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := newPublisherTest(t, 1100)
			p.streams(true)
			if tc.prepare != nil {
				tc.prepare(p)
			}
			p.atomic.Store(tc.atomic)
			sent := p.send(t.Context(), p.messages)
			stored, last, err := sent.stored, sent.last, sent.err
			if (err != nil) != (tc.missing > 0) {
				t.Errorf("the error is %v", err)
			}
			missing := 0
			for _, ok := range stored {
				if !ok {
					missing++
				}
			}
			if missing != tc.missing {
				t.Errorf("%d messages were not stored, want %d", missing, tc.missing)
			}
			n, batched := p.look(streams.Invalidations)
			if n != 1100 || last != n || batched != tc.batched {
				t.Errorf("%d events, %d of them in batches, the last at %d; want 1100, %d in batches", n, batched, last, tc.batched)
			}
			if n, batched := p.look(streams.Receipts); int(n) != 1100-tc.missing || batched != tc.later {
				t.Errorf("%d receipts, %d of them in batches, want %d: none goes before its event", n, batched, tc.later)
			}
		})
	}
}

// TestPublisherMeasures: atomic batches are for a broker that is slow with messages by themselves, and few messages say nothing.
func TestPublisherMeasures(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		messages int
		took     time.Duration
		want     int64
	}{
		{measuredFrom, measuredFrom * slowMessage, 0},
		{measuredFrom, measuredFrom*slowMessage + 1, measuredAgain},
		{measuredFrom - 1, time.Second, 0},
		{1000, 2 * time.Second, measuredAgain},
	} {
		p := &publisher{}
		p.measure(tc.messages, tc.took)
		if got := p.atomic.Load(); got != tc.want {
			t.Errorf("%d messages in %v: %d, want %d", tc.messages, tc.took, got, tc.want)
		}
	}
}

// TestPublisherInTime: once the time is over, no batch waits for the broker any more.
func TestPublisherInTime(t *testing.T) {
	t.Parallel()
	p := newPublisherTest(t, 1100)
	p.streams(true)
	p.atomic.Store(100)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.sendBatches(ctx, p.messages, make([]bool, len(p.messages)))
	if n := p.atomic.Load(); n != 100 {
		t.Errorf("%d batches were begun", 100-n)
	}
}

type publisherTest struct {
	*publisher
	t        *testing.T
	messages []signed
}

// newPublisherTest makes n events, and n receipts, of 20 services.
func newPublisherTest(t *testing.T, n int) *publisherTest {
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	p := &publisherTest{publisher: &publisher{js: js}, t: t}
	for i := range n {
		target := fmt.Sprintf("org.example.shop.s%d", i%20)
		p.messages = append(p.messages,
			signed{nonce: events.NewNonce(), subject: events.InvalidationSubject + target, payload: []byte("{}")},
			signed{nonce: events.NewNonce(), subject: events.ReceiptSubject + target, payload: []byte("{}")})
	}
	return p
}

func (p *publisherTest) streams(atomic bool) {
	for _, config := range []jetstream.StreamConfig{streams.InvalidationsConfig(), streams.ReceiptsConfig()} {
		config.AllowAtomicPublish = atomic
		if _, err := p.js.CreateOrUpdateStream(p.t.Context(), config); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *publisherTest) drop(stream string) {
	if err := p.js.DeleteStream(p.t.Context(), stream); err != nil {
		p.t.Fatal(err)
	}
}

func (p *publisherTest) mustSend(messages []signed) {
	if err := p.send(p.t.Context(), messages).err; err != nil {
		p.t.Fatal(err)
	}
}

// look returns how many messages a stream was given, and how many of those that it has came in a batch.
func (p *publisherTest) look(stream string) (n, batched uint64) {
	s, err := p.js.Stream(p.t.Context(), stream)
	if err != nil {
		return 0, 0
	}
	state := s.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		m, err := s.GetMsg(p.t.Context(), seq)
		if err != nil {
			p.t.Fatal(err)
		}
		if m.Header.Get(jetstreamext.BatchIDHeader) != "" {
			batched++
		}
	}
	return state.LastSeq, batched
}
