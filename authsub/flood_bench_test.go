package authsub_test

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// floodedKeys is how many keys the flooded service has had.
const floodedKeys = 100_000

// BenchmarkFloodedVerify is how long a good signature of one service waits while so many bad ones a second
// come of another that has had 100,000 keys.
func BenchmarkFloodedVerify(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		auth, flooded, honest := floodedAuth(b, testenv.Database(b, engine))
		for _, rate := range []int{0, 47, 500} {
			b.Run(fmt.Sprintf("%s/%d", engine, rate), func(b *testing.B) {
				stop := testenv.Flood(b, rate, func() { auth.Verify(b.Context(), query(flooded, honest.Current())) })
				defer stop()
				q := query(honest, honest.Current())
				verify := func() {
					if answer := auth.Verify(b.Context(), q); answer.Result != events.Accepted {
						b.Fatalf("%+v", answer)
					}
				}
				testenv.Paced(b, 500*time.Microsecond, func() func() { return verify })
			})
		}
	}
}

func floodedAuth(b *testing.B, url string) (auth *authsub.Auth, flooded, honest *subtest.Service) {
	b.Helper()
	flooded, honest = subtest.NewService(b, "flooded"), subtest.NewService(b, "honest")
	flooded.Bind(start)
	for i := range int64(floodedKeys - 1) {
		flooded.Reset(start + i)
	}
	honest.Bind(start)
	store, err := storage.Open(b.Context(), url, sqldb.Auth, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for batch := range slices.Chunk(slices.Concat(flooded.Events, honest.Events), 1000) {
		if _, err := store.Apply(b.Context(), batch, nil); err != nil {
			b.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	js, err := jetstream.New(testenv.Connect(b, testenv.NewBroker(b).URL()))
	if err != nil {
		b.Fatal(err)
	}
	known := &lookups{}
	known.set(events.ServiceRecord{
		AppID: flooded.Target.App, ServiceID: flooded.Target.Service, Status: events.Active, Sequence: floodedKeys,
		Current: events.CurrentKey{PublicKey: flooded.Current().Public(), Since: start + floodedKeys},
	})
	auth, err = authsub.New(b.Context(), authsub.Config{
		JetStream: js, DatabaseURL: url, Instance: "one", Trust: subtest.NewRegistry(b, events.GenerateSigningKey()).Trust,
		Registry: known, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = auth.Close() })
	return auth, flooded, honest
}
