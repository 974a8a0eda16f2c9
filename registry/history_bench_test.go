package registry

import (
	"fmt"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// BenchmarkFloodedBinding is how long a binding takes in the database while so many parts of a history of 100,000 keys are
// asked for a second.
func BenchmarkFloodedBinding(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		store := openStore(b, testenv.Database(b, engine))
		list := longHistory(b, "long", events.MasterReset, 100_000)
		put(b, store, list)
		lookup := newLookup(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store, Log: testLog(b), Now: time.Now}, nil, openGuard{})
		in := newTestIntake(b, store, Policy{Origin: testOrigin}, time.Now)
		d := newDeveloper(b, store, "org.omiappreg.bob", "first")
		service, target := 0, list[0].Target
		for _, rate := range []int{0, 6, 100} {
			b.Run(fmt.Sprintf("%s/%d", engine, rate), func(b *testing.B) {
				stop := testenv.Flood(b, rate, func() {
					_, _ = lookup.serveHistory(b.Context(), api.Call{
						AppID: target.App.String(), ServiceID: target.Service.String(), Body: events.HistoryQuery(50_000),
					}) // most are told to come again
				})
				defer stop()
				testenv.Paced(b, time.Millisecond, func() func() {
					service++
					r := d.another(fmt.Sprint("s-", service)).bind()
					return func() {
						outcomes, err := decideAndCommit(b.Context(), in, []decision.Incoming{decision.NewIncoming(r.draft.Subject(), r.payload, time.Now().Unix(), 0)})
						if err != nil || outcomes[0].Verdict != decision.Committed {
							b.Fatalf("%+v, %v", outcomes, err)
						}
					}
				})
			})
		}
	}
}
