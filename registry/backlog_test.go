package registry

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

var (
	backlogRequests = flag.Int("backlog.requests", 2000, "requests of TestBacklog")
	backlogEach     = flag.Int("backlog.each", 4, "requests of each service of TestBacklog, one after the other: at most 11")
	backlogProfile  = flag.String("backlog.profile", "", "file for a CPU profile of TestBacklog's registry")
)

// day is how long TestBacklog's registry was down, by its clock.
const day = 24 * 60 * 60

// TestBacklog: requests that waited while the registry was down for a day are all answered, and none is refused as
// stale: -backlog.requests=200000 -v.
func TestBacklog(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.SQLite)
	w := newWorld(t, url)
	if err := EnsureStreams(t.Context(), w.js, 1); err != nil {
		t.Fatal(err)
	}
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "s")
	js, err := jetstream.New(w.conn, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		t.Fatal(err)
	}
	services := make([]*developer, (*backlogRequests+*backlogEach-1) / *backlogEach)
	for i := range services {
		services[i] = d.another(fmt.Sprintf("s-%d", i))
	}
	published := make([]jetstream.PubAckFuture, *backlogRequests)
	for i := range published {
		s := services[i%len(services)]
		step := s.rotate
		if s.current.IsZero() {
			step = s.bind
		}
		r := step()
		if published[i], err = js.PublishAsync(r.draft.Subject(), r.payload); err != nil {
			t.Fatal(err)
		}
	}
	for _, one := range published {
		select {
		case <-one.Ok():
		case err := <-one.Err():
			t.Fatal(err)
		}
	}

	began := time.Now()
	replica := startReplica(t, replicaConfig{NATS: w.broker.URL(), Database: url, Ahead: day, Profile: *backlogProfile})
	start, held := 0.0, 0
	testenv.Eventually(t, time.Hour, "everything is answered", func() error {
		consumer, err := w.js.Consumer(t.Context(), streams.Requests, streams.RegistryDurable)
		if err != nil {
			return err
		}
		if start == 0 {
			start, _ = replica.memory()
		}
		info := consumer.CachedInfo()
		held = max(held, info.NumAckPending)
		left := info.NumPending + uint64(info.NumAckPending)
		// A durable that was made just now may not have counted yet what there is for it.
		if answered := w.lastIn(streams.Receipts); left > 0 || answered < uint64(*backlogRequests) {
			return fmt.Errorf("%d are left, %d answered", left, answered)
		}
		return nil
	})
	took := time.Since(began)
	end, most := replica.memory()
	w.cleanAt(time.Now().Add(day * time.Second))
	t.Logf("%d requests of %d services in %v: %.0f/s; RSS at the start %.0f, at most %.0f, at the end %.0f MiB; %d unacknowledged at most",
		*backlogRequests, len(services), took.Round(time.Millisecond), float64(*backlogRequests)/took.Seconds(), start, most, end, held)

	report, err := w.store.Admin().Check(t.Context(), &w.trust, time.Now().Add(day*time.Second))
	if err != nil || report.Changes != *backlogRequests || report.Services != len(services) {
		t.Errorf("%d changes of %d services, want %d of %d: %v", report.Changes, report.Services, *backlogRequests, len(services), err)
	}
	for _, name := range []string{streams.Receipts, streams.Invalidations} {
		if got := w.lastIn(name); got != uint64(*backlogRequests) {
			t.Errorf("%s has %d messages, want %d", name, got, *backlogRequests)
		}
	}
}

// lastIn returns how many messages a stream has had.
func (w *world) lastIn(name string) uint64 {
	w.t.Helper()
	stream, err := w.js.Stream(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return stream.CachedInfo().State.LastSeq
}
