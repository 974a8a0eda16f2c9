package registry

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/internal/testenv"
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
	of := func(subject string, size int) signed {
		return signed{subject: subject, payload: make([]byte, size), nonce: events.NewNonce()}
	}
	for _, list := range [][]signed{
		{of("full", 100), of("free", 1000), of("free", 100)},
		{of("free", 1000), of("free", 100), of("full", 100)},
	} {
		sent := (&publisher{js: js}).send(t.Context(), list)
		stored, lacking, err := sent.stored, sent.lacking, sent.err
		if !room.Lacks(err) {
			t.Errorf("the error is %v, want the lack of space", err)
		}
		for i, m := range list {
			full, large := m.subject == "full", len(m.payload) > 512
			if lacking[i] != full || stored[i] == (full || large) {
				t.Errorf("message %d of %d bytes to %s: stored %t, lacking %t", i, len(m.payload), m.subject, stored[i], lacking[i])
			}
		}
	}
}
