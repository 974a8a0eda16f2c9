package e2e_test

import (
	"testing"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// rotated rotates the key of the client, and waits until Auth and Billing have applied that.
func (s *domain) rotated(c *client.Client, sequence int64) {
	s.t.Helper()
	if _, err := c.Rotate(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.settled(c, sequence)
}

// TestBrokerComesBackEmpty: the broker loses all that it has stored while the three processes
// run. The registry makes the streams again, and rotations go through as before.
func TestBrokerComesBackEmpty(t *testing.T) {
	t.Parallel()
	useSources(t)
	broker := testenv.NewBroker(t)
	d := newDeploymentAt(t, broker, testenv.Database(t, testenv.SQLite))
	s := newDomain(t, d, "cms")
	s.bind()
	store := s.store()
	defer s.close(store)
	c := s.open(store)

	broker.Empty()
	s.rotated(c, 2)
	d.awaitReady()
}

// TestBrokerOfSmallPulls: all three processes work at a broker that allows small pulls and few
// messages in flight.
func TestBrokerOfSmallPulls(t *testing.T) {
	t.Parallel()
	useSources(t)
	broker := testenv.NewBrokerOf(t, "jetstream { limits { max_request_batch: 10, max_ack_pending: 20 } }")
	d := newDeploymentAt(t, broker, testenv.Database(t, testenv.SQLite))
	s := newDomain(t, d, "cms")
	s.bind()
	store := s.store()
	defer s.close(store)
	s.rotated(s.open(store), 2)
	for name, stream := range map[string]string{
		streams.RegistryDurable: streams.Requests, authDurable: streams.Invalidations, streams.BillingDurable: streams.Invalidations,
	} {
		consumer, err := d.js.Consumer(t.Context(), stream, name)
		if err != nil {
			t.Fatal(err)
		}
		if c := consumer.CachedInfo().Config; c.MaxRequestBatch != 10 || c.MaxAckPending != 20 {
			t.Errorf("%s allows %d in a pull, and %d in flight", name, c.MaxRequestBatch, c.MaxAckPending)
		}
	}
}
