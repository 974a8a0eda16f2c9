package outbox

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/internal/testenv"
)

// TestDeleteEnds: a database that vanished without a word does not hold up the relay, which
// has to publish what others commit. What it did not delete is deleted later.
func TestDeleteEnds(t *testing.T) {
	t.Parallel()
	server, err := url.Parse(testenv.Database(t, testenv.Postgres))
	if err != nil {
		t.Fatal(err)
	}
	way := testenv.NewProxy(t, server.Host)
	server.Host = way.Addr()
	b := openBook(t, server.String())
	bound := b.bind(time.Now(), "one")
	r := New(Config{Outbox: b.outbox, Guard: unguarded{}, Metrics: prometheus.NewRegistry(), Now: time.Now, Log: b.log})
	r.deleteWithin = 100 * time.Millisecond
	way.Stall()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.delete(context.WithoutCancel(t.Context()), published{messages: bound[0]})
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("it waits for the database")
	}
	way.Restore()
	r.deleteWithin = patience
	<-ended
	r.delete(t.Context(), published{messages: bound[0]})
	if left, err := b.outbox.Stale(t.Context(), time.Now().Add(time.Hour)); err != nil || left {
		t.Errorf("something is left: %t, %v", left, err)
	}
}

// TestClaimPause: where a look at the outbox takes long, there is one less often; but a crash's messages don't wait for ever.
func TestClaimPause(t *testing.T) {
	t.Parallel()
	for looked, want := range map[time.Duration]time.Duration{
		0: time.Second, time.Millisecond: time.Second, 300 * time.Millisecond: 3 * time.Second, time.Minute: 15 * time.Second,
	} {
		if got := claimPause(looked); got != want {
			t.Errorf("after %s: %s, want %s", looked, got, want)
		}
	}
}
