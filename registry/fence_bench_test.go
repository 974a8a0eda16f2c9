package registry

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

// BenchmarkFence measures what the comparison with the stream costs: an event that the history has, one that is recovered
// with a stand-in for its receipt, and the look at the position that each batch of requests pays for.
func BenchmarkFence(b *testing.B) {
	const services, each = 250, 20
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		b.Run(engine, func(b *testing.B) {
			store := openStore(b, testenv.Database(b, engine))
			js, err := jetstream.New(testenv.Connect(b, testenv.NewBroker(b).URL()))
			if err != nil {
				b.Fatal(err)
			}
			if err := EnsureStreams(b.Context(), js, 1); err != nil {
				b.Fatal(err)
			}
			publishHistories(b, js, newDeveloper(b, store, "org.omiappreg.alice", "x"), services, each)
			f := newGuard(b, store, js)
			trust, err := events.NewTrust(testOrigin, testKey.Public())
			if err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			report, err := store.Admin().Recover(b.Context(), Recovery{JetStream: js, Trust: trust, Key: testKey, Log: testLog(b)})
			if err != nil || report.Changes != services*each {
				b.Fatalf("recovered %+v: %v", report, err)
			}
			recovered := float64(time.Since(began).Nanoseconds()) / (services * each)
			b.Run("compare", func(b *testing.B) {
				for b.Loop() {
					if _, err := store.db.Exec(b.Context(), "DELETE FROM stream_positions"); err != nil {
						b.Fatal(err)
					}
					if err := f.CompareOnce(b.Context()); err != nil || f.OnHold() > 0 {
						b.Fatal(err, f.OnHold())
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*services*each), "ns/event")
				b.ReportMetric(recovered, "ns/recovered")
			})
			b.Run("position", func(b *testing.B) {
				for b.Loop() {
					if err := f.Check(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// publishHistories publishes events of services that no database knows.
func publishHistories(b *testing.B, js jetstream.JetStream, d *developer, services, each int) {
	b.Helper()
	for i := range services {
		target := d.target
		target.Service, _ = events.ParseServiceID("s" + time.Duration(i).String())
		var key events.PublicKey
		for n := range each {
			e := events.Invalidation{
				Origin: testOrigin, Target: target, Event: events.KeyRotation, OldKey: key, NewKey: events.GenerateSigningKey().Public(),
				Timestamp: int64(testNow + n), GracePeriodExpiry: int64(testNow + n), Nonce: events.NewNonce(), Sequence: int64(n + 1),
			}
			if n == 0 {
				e.Event = events.ServiceBinding
			}
			key = e.NewKey
			if _, err := js.PublishAsync(e.Subject(), e.Sign(testKey)); err != nil {
				b.Fatal(err)
			}
		}
	}
	<-js.PublishAsyncComplete()
}
