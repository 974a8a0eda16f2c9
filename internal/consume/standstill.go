package consume

import (
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// standsStillAfter is how long messages may wait at the broker while none is delivered.
const standsStillAfter = 10 * time.Second

// Deliveries keeps what the broker says of a durable each time that it is asked: how many messages
// wait, and whether any of them comes. The absence of an error does not show that they come: a pull
// that the broker refuses, or has forgotten, gives no error.
type Deliveries struct {
	mu        sync.Mutex
	waiting   uint64
	delivered uint64
	still     time.Time // since when messages wait and none is delivered; otherwise zero
}

// Note records an answer of the broker.
func (d *Deliveries) Note(info *jetstream.ConsumerInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	moves := info.NumPending == 0 || info.NumAckPending > 0 || info.Delivered.Consumer != d.delivered
	d.waiting, d.delivered = info.NumPending, info.Delivered.Consumer
	switch {
	case moves:
		d.still = time.Time{}
	case d.still.IsZero():
		d.still = time.Now()
	}
}

// Waiting returns how many messages wait at the broker to be delivered, by its last answer.
func (d *Deliveries) Waiting() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting
}

// Err returns an error if messages wait and none comes.
func (d *Deliveries) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.still.IsZero() || time.Since(d.still) < standsStillAfter {
		return nil
	}
	return fmt.Errorf("%d messages wait at the broker, and none has been delivered for %v", d.waiting, time.Since(d.still).Round(time.Second))
}
