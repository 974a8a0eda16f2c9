package storage_test

import (
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestOnePlaceTwice: a registry whose database was restored from an older copy may commit one
// request again, with the same sequence and at another time. Either event may come first: the state
// is the same.
func TestOnePlaceTwice(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		for name, order := range map[string][]int{"early-first": {0, 1}, "late-first": {1, 0}} {
			s := subtest.NewService(t, name)
			first := s.Bind(start)
			again := first
			again.Timestamp, again.GracePeriodExpiry, again.Nonce = start+60, start+60, events.NewNonce()
			for _, i := range order {
				apply(t, store, []events.Invalidation{first, again}[i])
			}
			got, found, err := store.KeyringOf(t.Context(), s.Target)
			if err != nil || !found || len(got.Keyring.Keys) != 1 || got.Keyring.Keys[0].From != start {
				t.Errorf("%s: %+v, %v, %v; want one key from %d", name, got, found, err, start)
			}
		}
	})
}
