package provision

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// bounds are what a stream may hold.
type bounds struct {
	waiting, bytes int64
	discard        jetstream.DiscardPolicy
}

func boundsOf(t *testing.T, js jetstream.JetStream, name string) bounds {
	t.Helper()
	stream, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	if _, is := cfg.Metadata[provisional]; is {
		t.Errorf("%s has provisional bounds", name)
	}
	return bounds{max(0, cfg.MaxMsgsPerSubject), max(0, cfg.MaxBytes), cfg.Discard}
}

// TestStreamBounds: of a small store, what strangers fill leaves most to the events; a large one is
// bounded too. A second start changes nothing.
func TestStreamBounds(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for name, c := range map[string]struct{ store, requests, receipts int64 }{
		"64 MiB": {64 * mib, 16 * mib, 8 * mib},
		"1 TiB":  {1 << 40, 1 << 30, 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			js := jetStreamOn(t, testenv.NewSmallBroker(t, c.store))
			for range 2 {
				if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
					t.Fatal(err)
				}
				for stream, want := range map[string]bounds{
					streams.Requests:      {streams.RequestsWaiting, c.requests, jetstream.DiscardNew},
					streams.Receipts:      {64, c.receipts, jetstream.DiscardOld},
					streams.Invalidations: {64, 0, jetstream.DiscardNew},
				} {
					if got := boundsOf(t, js, stream); got != want {
						t.Errorf("%s: %+v, want %+v", stream, got, want)
					}
				}
			}
		})
	}
}

// TestStreamBoundsOfOperator: what an operator says holds, and what a stream has stays where
// nothing is said.
func TestStreamBoundsOfOperator(t *testing.T) {
	t.Parallel()
	js := jetStreamOn(t, testenv.NewSmallBroker(t, 64<<20))
	said := Limits{Waiting: 7, RequestBytes: 1 << 20, ReceiptBytes: 2 << 20, EventBytes: 3 << 20}
	for _, limits := range []Limits{said, {}} {
		if err := Ensure(t.Context(), js, 1, limits); err != nil {
			t.Fatal(err)
		}
		for stream, want := range map[string]bounds{
			streams.Requests:      {7, 1 << 20, jetstream.DiscardNew},
			streams.Receipts:      {64, 2 << 20, jetstream.DiscardOld},
			streams.Invalidations: {64, 3 << 20, jetstream.DiscardNew},
		} {
			if got := boundsOf(t, js, stream); got != want {
				t.Errorf("%s: %+v, want %+v", stream, got, want)
			}
		}
	}
	err := Ensure(t.Context(), js, 1, Limits{RequestBytes: 1 << 30})
	if !errors.Is(err, ErrStreamRoom) || !strings.Contains(err.Error(), streams.Requests) {
		t.Errorf("more than there is: %v", err)
	}
}

// TestStreamBoundsKeepWhatWaits: to bound a stream that exists deletes nothing of it. The bound is
// set when that fits.
func TestStreamBoundsKeepWhatWaits(t *testing.T) {
	t.Parallel()
	js := jetStreamOn(t, testenv.NewBroker(t))
	old := streams.RequestsConfig()
	old.MaxMsgsPerSubject, old.DiscardNewPerSubject = 0, false
	stream, err := js.CreateStream(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	const waiting = streams.RequestsWaiting + 5
	for range waiting {
		if _, err := js.Publish(t.Context(), events.RotationSubject+"org.example.shop.cms", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context())
	if err != nil || info.State.Msgs != waiting || info.Config.MaxMsgsPerSubject != waiting {
		t.Fatalf("%d of %d are left, the bound is %d: %v", info.State.Msgs, waiting, info.Config.MaxMsgsPerSubject, err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
		t.Fatal(err)
	}
	if got := boundsOf(t, js, streams.Requests).waiting; got != streams.RequestsWaiting {
		t.Errorf("the bound is %d, want %d", got, streams.RequestsWaiting)
	}
}

func jetStreamOn(t *testing.T, b *testenv.Broker) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, b.URL()))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// TestStreamBoundsOfAccount: where an account's streams may reserve no more than so much each, the streams get less, and the
// registry starts.
func TestStreamBoundsOfAccount(t *testing.T) {
	t.Parallel()
	const most = 64 << 20
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the broker does not start")
	}
	if err := s.GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
		"": {MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1, StoreMaxStreamBytes: most},
	}); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(testenv.Connect(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []string{streams.Requests, streams.Receipts} {
		if got := boundsOf(t, js, stream).bytes; got <= 0 || got > most {
			t.Errorf("%s has %d bytes, and may have %d", stream, got, int64(most))
		}
	}
	err = Ensure(t.Context(), js, 1, Limits{RequestBytes: 2 * most})
	if !errors.Is(err, ErrStreamRoom) {
		t.Errorf("more than the account's streams may have: %v, want ErrStreamRoom", err)
	}
}

// TestStreamBoundsKeepTheSize: a stream where more waits than the bound of messages allows keeps the size that an operator gave it, at
// each start until it has been worked off.
func TestStreamBoundsKeepTheSize(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	js := jetStreamOn(t, testenv.NewBroker(t))
	old := streams.RequestsConfig()
	old.MaxMsgsPerSubject, old.DiscardNewPerSubject, old.MaxBytes = 0, false, size
	stream, err := js.CreateStream(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	for range streams.RequestsWaiting + 5 {
		if _, err := js.Publish(t.Context(), events.RotationSubject+"org.example.shop.cms", nil); err != nil {
			t.Fatal(err)
		}
	}
	for start := range 2 {
		if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
			t.Fatal(err)
		}
		info, err := stream.Info(t.Context())
		if err != nil || info.Config.MaxBytes != size {
			t.Fatalf("after start %d the stream has %d bytes, want %d: %v", start, info.Config.MaxBytes, size, err)
		}
	}
}
