package registry

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/testenv"
)

// BenchmarkFloodedBinding is how long a binding takes in the database while so many parts of a history of 100,000 keys are
// asked for a second.
func BenchmarkFloodedBinding(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		store := openStore(b, testenv.Database(b, engine))
		list := longHistory(b, "long", events.MasterReset, 100_000)
		put(b, store, list)
		lookup := newLookup(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store, Log: testLog(b), Now: time.Now}, nil, nil)
		in := newTestIntake(b, store, Policy{Origin: testOrigin}, time.Now)
		d := newDeveloper(b, store, "org.omiappreg.bob", "first")
		service := 0
		for _, rate := range []int{0, 6, 100} {
			b.Run(fmt.Sprintf("%s/%d", engine, rate), func(b *testing.B) {
				stop := floodHistory(b, lookup, list[0].Target, rate)
				defer stop()
				var took []time.Duration
				for b.Loop() {
					time.Sleep(time.Millisecond)
					service++
					r := d.another(fmt.Sprint("s-", service)).bind()
					began := time.Now()
					outcomes, err := decideAndCommit(b.Context(), in, []incoming{newIncoming(r.draft.Subject(), r.payload, began.Unix(), 0)})
					if err != nil || outcomes[0].verdict != committed {
						b.Fatalf("%+v, %v", outcomes, err)
					}
					took = append(took, time.Since(began))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			})
		}
	}
}

// floodHistory asks for a part so many times a second, each time without waiting for the answer before.
func floodHistory(b *testing.B, lookup *Lookup, target events.Target, rate int) (stop func()) {
	b.Helper()
	if rate == 0 {
		return func() {}
	}
	done, tick := make(chan struct{}), time.NewTicker(time.Second/time.Duration(rate))
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				asking.Go(func() {
					_, _ = lookup.serveHistory(b.Context(), api.Call{
						AppID: target.App.String(), ServiceID: target.Service.String(), Body: events.HistoryQuery(50_000),
					}) // most are told to come again
				})
			}
		}
	})
	return func() { close(done); asking.Wait(); tick.Stop() }
}
