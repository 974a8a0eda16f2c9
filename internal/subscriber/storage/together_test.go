package storage_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestTogether: two processes on one database get the events of the same new services at the same
// time, and some events come to both. Each service is there once, with everything that either has
// seen.
func TestTogether(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		var services []*subtest.Service
		var shares [2][]events.Invalidation
		for i := range 50 {
			s := subtest.NewService(t, fmt.Sprintf("s-%d", i))
			s.Bind(start)
			s.Rotate(start+10, 300)
			s.Reset(start + 20)
			services = append(services, s)
			shares[0], shares[1] = append(shares[0], s.Events[:2]...), append(shares[1], s.Events[1:]...)
		}
		var processes errgroup.Group
		for _, share := range shares {
			store := openStore(t, url)
			rand.Shuffle(len(share), func(i, j int) { share[i], share[j] = share[j], share[i] })
			processes.Go(func() error {
				for batch := range slices.Chunk(share, 10) {
					if _, err := store.Apply(t.Context(), batch, nil); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := processes.Wait(); err != nil {
			t.Fatal(err)
		}
		known := all(t, openStore(t, url))
		if len(known) != len(services) {
			t.Errorf("%d services are known, want %d", len(known), len(services))
		}
		for _, s := range services {
			got := known[s.Target]
			if diff := diffKeyrings(s.Keyring(), got.Keyring); diff != "" || got.Gap || got.Sequence != 3 {
				t.Errorf("%s: sequence %d, gap %t\n%s", s.Target, got.Sequence, got.Gap, diff)
			}
		}
	})
}
