package access_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/internal/access"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestLimits: an account's connections, subscriptions and size of messages are limited, so it can't
// take the broker's memory. The broker tells its clients the largest size, and closes the
// connection of a client that ignores it.
func TestLimits(t *testing.T) {
	t.Parallel()
	const connections, subscriptions = 3, 1000
	b := testenv.NewSecuredBroker(t, func(nkey func(string) string) string {
		text := access.Service(target(t, cms), nkey("cms")).String() + access.Receiver("shop", nkey("receiver"), 2).String()
		few := strings.ReplaceAll(text, "max_connections: 256", fmt.Sprintf("max_connections: %d", connections)) // each costs a handshake
		if few == text {
			t.Fatalf("there is no limit of connections in %s", text)
		}
		return few
	})
	for _, user := range []string{"cms", "receiver"} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			denied := make(chan error, 100)
			nc := b.Connect(user, func(err error) { denied <- err })
			for i := range subscriptions + 1 {
				if _, err := nc.SubscribeSync(nc.NewInbox()); err != nil {
					t.Fatalf("subscription %d: %v", i, err)
				}
			}
			if err := expectError(t, denied); !errors.Is(err, nats.ErrMaxSubscriptionsExceeded) {
				t.Errorf("many subscriptions: %v", err)
			}
			testenv.Eventually(t, patience, "the broker says how large a message may be", func() error {
				if most := nc.MaxPayload(); most != 72<<10 {
					return fmt.Errorf("%d bytes", most)
				}
				return nil
			})
			for range connections - 1 {
				b.Connect(user, func(error) {})
			}
			testenv.Eventually(t, patience, "one more is refused", func() error {
				another, err := b.TryConnect(user)
				if err == nil {
					another.Close()
				}
				if !errors.Is(err, nats.ErrMaxAccountConnectionsExceeded) {
					return fmt.Errorf("it gets %w", err)
				}
				return nil
			})
		})
	}
}

func expectError(t *testing.T, errs <-chan error) error {
	t.Helper()
	select {
	case err := <-errs:
		return err
	case <-time.After(patience):
		t.Fatal("nothing comes")
		return nil
	}
}
