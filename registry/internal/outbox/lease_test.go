package outbox

import (
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// TestLeases: no other replica gets what one has in hand, however long that takes, and whichever
// of the two has the clock that is ahead. Others get a row once its holder gave it up and its
// lease has ended.
func TestLeases(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		b := openBook(t, url)
		began := time.Now()
		now := began
		messages := b.bind(now, "one")[0]
		mine := &leases{outbox: b.outbox, log: b.log, now: func() time.Time { return now }, within: patience, held: map[*lease]struct{}{}}
		claim := func(after time.Duration, want int) {
			t.Helper()
			claimed, err := b.outbox.Claim(t.Context(), 10, began.Add(after))
			if err != nil || len(claimed) != want {
				t.Errorf("after %s, %d messages are claimed, want %d: %v", after, len(claimed), want, err)
			}
		}
		held := mine.hold(messages, began)
		claim(ledger.LeaseFor-time.Millisecond, 0)
		for range 3 { // the broker is slow
			now = now.Add(ledger.LeaseFor / 2)
			mine.renew(t.Context())
		}
		claim(2*ledger.LeaseFor, 0)
		mine.release(held)
		now = now.Add(ledger.LeaseFor / 2)
		mine.renew(t.Context())
		claim(3*ledger.LeaseFor, 2)
		claim(2*ledger.LeaseFor+time.Second, 0) // by a clock that is behind
		claim(4*ledger.LeaseFor-time.Second, 0)
		claim(5*ledger.LeaseFor, 2)
	})
}
