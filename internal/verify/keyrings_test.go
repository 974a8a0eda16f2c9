package verify

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
)

// TestKeyringsReadWhileWritten is for the race detector: enough services that every shard has one, read all the time
// while they are added and changed.
func TestKeyringsReadWhileWritten(t *testing.T) {
	t.Parallel()
	k, key := newKeyrings(), events.GenerateSigningKey()
	services := make([]*subtest.Service, 3*shards)
	for i := range services {
		services[i] = subtest.NewService(t, fmt.Sprint("s", i))
		services[i].BindWith(1, key)
		services[i].RotateTo(2, 300, key)
	}
	k.load(services[0].Target, known{services[0].Keyring(), 2}, 2)
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if have := k.find(services[i%len(services)].Target); have != nil && have.sequence != have.keyring.Head {
					t.Error("a state that no event made")
				}
			}
		})
	}
	for _, s := range services {
		k.apply(&s.Events[0], 2)
	}
	for _, s := range services {
		k.apply(&s.Events[1], 2)
	}
	stop()
	readers.Wait()
	for _, s := range services {
		if have := k.find(s.Target); have == nil || have.sequence != 2 {
			t.Fatalf("%s: %+v", s.Target, have)
		}
	}
}
