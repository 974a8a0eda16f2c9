package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/testenv"
)

// TestStartRefused: a registry at a broker that is there and refuses what it needs says so, and
// goes on trying.
func TestStartRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ broker, want string }{
		"no JetStream": {"", "the broker has JetStream off"},
		"duplicates":   {`jetstream { limits { duplicate_window: "1s" } }`, "the broker has limits"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := openStore(t, testenv.Database(t, testenv.SQLite))
			r, err := New(Config{
				Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store,
				Conn: testenv.Connect(t, testenv.ServeText(t, c.broker)), Log: testLog(t),
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- r.Run(ctx) }()
			testenv.Eventually(t, patience, "it says why", func() error {
				if err := r.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), c.want) {
					return fmt.Errorf("it says %w", err)
				}
				return nil
			})
			stop()
			if err := <-done; err != nil {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}
