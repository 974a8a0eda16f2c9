package registry

import (
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

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
