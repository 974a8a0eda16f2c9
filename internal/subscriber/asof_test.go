package subscriber

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/incoming"
)

// TestAsOfOnABusyStream: something always waits for its acknowledgement. The time still
// follows the acknowledged messages, never passes an open one, and never goes back.
func TestAsOfOnABusyStream(t *testing.T) {
	t.Parallel()
	var h asOf
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	batch := func(sequence uint64, published int64) {
		h.applied([]incoming.Delivery{{Sequence: sequence, Published: at(published)}})
	}
	ask := func(what string, asked int64, floor uint64, open int, want int64) {
		t.Helper()
		h.reply(at(asked), &jetstream.ConsumerInfo{NumAckPending: open, AckFloor: jetstream.SequenceInfo{Stream: floor}})
		if got := h.time.Load(); got != want {
			t.Errorf("%s: as of %d, want %d", what, got, want)
		}
	}
	ask("nothing is open", 100, 0, 0, 100)
	batch(10, 150)
	ask("the first batch is applied", 160, 5, 5, 100)
	batch(20, 250)
	ask("it is acknowledged, but for a message", 260, 9, 11, 100)
	ask("it is acknowledged", 270, 12, 8, 150)
	batch(30, 350)
	ask("so is the second", 360, 29, 1, 250)
	ask("nothing is open again", 400, 30, 0, 400)
	ask("an old message is acknowledged", 410, 30, 1, 400)

	h.restart()
	batch(1, 500)
	ask("the stream was recreated", 510, 0, 1, 400)
	ask("its first message is acknowledged", 520, 1, 1, 500)
}
