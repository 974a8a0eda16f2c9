package outbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

// TestPublisher: whether the broker takes atomic batches or not, and whatever it has already, each message is in its stream
// once, and what is not there is not said to be.
func TestPublisher(t *testing.T) {
	t.Parallel()
	const n = 1100
	for _, tc := range []struct {
		name    string
		n       int // events, and as many receipts; 0: n
		prepare func(*publisherTest)
		batched uint64 // the events that came in a batch
		later   uint64 // the receipts that did
		missing int
	}{
		{name: "few go each by itself", n: batchFrom/2 - 1},
		{name: "many", batched: n, later: n},
		{name: "many, for a broker that needs no batches", prepare: func(p *publisherTest) { p.batches = false }},
		{name: "one is there already", prepare: func(p *publisherTest) { p.mustSend(p.messages[100:101]) }, batched: 100},
		{name: "streams that take no batches", prepare: func(p *publisherTest) { p.streams(false) }},
		{name: "no stream of receipts", prepare: func(p *publisherTest) { p.drop(streams.Receipts) }, batched: n, missing: n},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			count := cmp.Or(tc.n, n)
			p := newPublisherTest(t, count)
			p.streams(true)
			if tc.prepare != nil {
				tc.prepare(p)
			}
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
			if int(n) != count || last != n || batched != tc.batched {
				t.Errorf("%d events, %d of them in batches, the last at %d; want %d, %d in batches", n, batched, last, count, tc.batched)
			}
			if n, batched := p.look(streams.Receipts); int(n) != count-tc.missing || batched != tc.later {
				t.Errorf("%d receipts, %d of them in batches, want %d: none goes before its event", n, batched, tc.later)
			}
		})
	}
}

// TestLackingIsOfEachMessage: a message is said to lack space only if it is that one which had none. Another, which fails
// for something else in the same batch, is sent again.
func TestLackingIsOfEachMessage(t *testing.T) {
	t.Parallel()
	js := jetStreamOn(t, testenv.NewBroker(t))
	for name, size := range map[string]int64{"full": 1, "free": -1} {
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
			Name: name, Subjects: []string{name}, MaxBytes: size, MaxMsgSize: 512, Discard: jetstream.DiscardNew,
		}); err != nil {
			t.Fatal(err)
		}
	}
	of := func(subject string, size int) decision.Message {
		return decision.Message{Subject: subject, Payload: make([]byte, size), Nonce: events.NewNonce()}
	}
	for _, list := range [][]decision.Message{
		{of("full", 100), of("free", 1000), of("free", 100)},
		{of("free", 1000), of("free", 100), of("full", 100)},
	} {
		sent := (&publisher{js: js}).send(t.Context(), list)
		stored, lacking, err := sent.stored, sent.noSpace, sent.err
		if !room.Lacks(err) {
			t.Errorf("the error is %v, want the lack of space", err)
		}
		for i, m := range list {
			full, large := m.Subject == "full", len(m.Payload) > 512
			if lacking[i] != full || stored[i] == (full || large) {
				t.Errorf("message %d of %d bytes to %s: stored %t, lacking %t", i, len(m.Payload), m.Subject, stored[i], lacking[i])
			}
		}
	}
}

// TestTold: a waiting service hears of a committed change whatever becomes of the receipt. It hears of a refusal once the receipt
// is stored: until then the request may be decided again.
func TestTold(t *testing.T) {
	t.Parallel()
	js := jetStreamOn(t, testenv.NewBroker(t))
	nc := js.Conn() // the publisher's own, so that what it publishes comes before a flush ends
	heard, err := nc.SubscribeSync(events.AnswerSubject + ">")
	if err != nil {
		t.Fatal(err)
	}
	told := func() (list []string) {
		t.Helper()
		(&publisher{js: js}).send(t.Context(), []decision.Message{ // it fails where there is no stream
			{Subject: events.ReceiptSubject + "committed", Nonce: events.NewNonce(), Parts: 2},
			{Subject: events.ReceiptSubject + "refused", Nonce: events.NewNonce()},
		})
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		for n, _, _ := heard.Pending(); n > 0; n-- {
			msg, err := heard.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, strings.TrimPrefix(msg.Subject, events.AnswerSubject))
		}
		return list
	}
	if got := told(); !slices.Equal(got, []string{"committed"}) {
		t.Errorf("without a stream of receipts, %q are told", got)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "receipts", Subjects: []string{events.ReceiptSubject + ">"}}); err != nil {
		t.Fatal(err)
	}
	if got := told(); !slices.Equal(got, []string{"committed", "refused"}) {
		t.Errorf("with a stream of receipts, %q are told", got)
	}
}

// TestPublisherInTime: once the time is over, no batch waits for the broker any more.
func TestPublisherInTime(t *testing.T) {
	t.Parallel()
	p := newPublisherTest(t, 1100)
	p.streams(true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.sendBatches(ctx, p.messages, make([]bool, len(p.messages)))
	if n, _ := p.look(streams.Invalidations); n != 0 {
		t.Errorf("%d events were sent", n)
	}
}

type publisherTest struct {
	*publisher
	t        *testing.T
	messages []decision.Message
}

// newPublisherTest makes n events, and n receipts, of 20 services.
func newPublisherTest(t *testing.T, n int) *publisherTest {
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	p := &publisherTest{publisher: &publisher{js: js, batches: true}, t: t}
	for i := range n {
		target := fmt.Sprintf("org.example.shop.s%d", i%20)
		p.messages = append(p.messages,
			decision.Message{Nonce: events.NewNonce(), Subject: events.InvalidationSubject + target, Payload: []byte("{}")},
			decision.Message{Nonce: events.NewNonce(), Subject: events.ReceiptSubject + target, Payload: []byte("{}")})
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

func (p *publisherTest) mustSend(messages []decision.Message) {
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
	for seq := max(state.FirstSeq, 1); seq <= state.LastSeq; seq++ {
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
