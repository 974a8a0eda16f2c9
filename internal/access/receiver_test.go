package access_test

import (
	"errors"
	"log/slog"
	"testing"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestReceiver: a receiver's processes read the events by the names of their account, and nothing
// that they do is refused.
func TestReceiver(t *testing.T) {
	t.Parallel()
	w, _ := securedWorld(t)
	trust, err := events.NewTrust("omiappreg.org", events.GenerateSigningKey().Public())
	w.must(err)
	for range 2 {
		nc := w.connect("receiver", func(err error) { t.Errorf("it lacks a permission: %v", err) })
		v, err := client.NewVerifier(client.VerifierConfig{
			Conn: nc, Trust: trust, Receiver: "shop", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		w.must(err)
		t.Cleanup(subtest.Running(t, v.Run))
		testenv.Eventually(t, patience, "it has read the stream", func() error {
			if v.Ready() != nil {
				return errors.New("not yet")
			}
			return nil
		})
	}
}
