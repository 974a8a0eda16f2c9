package billingsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/billingsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const (
	start  = int64(1_705_412_600)
	within = time.Minute
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// world is a Billing Service on a real stream and a real database.
type world struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	registry *subtest.Registry
	billing  *billingsub.Billing
	stop     func()
}

func newWorld(t testing.TB, url string) *world {
	t.Helper()
	w := &world{registry: subtest.NewRegistry(t, events.GenerateSigningKey())}
	w.nc = testenv.Connect(t, testenv.NewBroker(t).URL())
	var err error
	if w.js, err = jetstream.New(w.nc); err != nil {
		t.Fatal(err)
	}
	subtest.Stream(t, w.js)
	w.starts(t, url)
	return w
}

// starts starts the Billing Service. It ends with the test, or is stopped before.
func (w *world) starts(t testing.TB, url string) {
	t.Helper()
	var err error
	w.billing, err = billingsub.New(t.Context(), billingsub.Config{
		JetStream: w.js, DatabaseURL: url, Trust: w.registry.Trust, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	billing := w.billing
	closed := sync.OnceFunc(func() {
		if err := billing.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(closed)
	stop := subtest.Running(t, billing.Run)
	w.stop = func() { stop(); closed() }
}

// serveHistory plays the registry's lookup of one service, over NATS.
func (w *world) serveHistory(t *testing.T, s *subtest.Service, by events.SigningKey) (stop func()) {
	t.Helper()
	history := s.History()
	return w.serve(t, events.LookupHistorySubject+s.Target.String(), func(question []byte) ([]byte, error) {
		q, err := events.ParseHistoryQuery(question)
		return subtest.Part(history, q).Sign(by), err
	})
}

// serveKeys plays the registry's lookup of keys, of these services.
func (w *world) serveKeys(t *testing.T, by events.SigningKey, services ...*subtest.Service) (stop func()) {
	t.Helper()
	records := map[events.PublicKey]events.KeyRecord{}
	for _, s := range services {
		for _, line := range s.History().Keys {
			records[line.PublicKey] = events.KeyRecord{
				AppID: s.Target.App, ServiceID: s.Target.Service, Event: line.Event, Sequence: line.Sequence, From: line.From, Until: line.Until,
			}
		}
	}
	return w.serve(t, events.LookupKeySubject, func(question []byte) ([]byte, error) {
		key, err := events.ParseKeyQuery(question)
		record := records[key]
		record.Origin, record.PublicKey, record.Timestamp = subtest.Origin, key, time.Now().Unix()
		return record.Sign(by), err
	})
}

// serve answers questions until it is stopped; none where the answer is nil.
func (w *world) serve(t *testing.T, subject string, answer func(question []byte) ([]byte, error)) (stop func()) {
	t.Helper()
	sub, err := w.nc.Subscribe(subject, func(m *nats.Msg) {
		document, err := answer(m.Data)
		if err != nil {
			t.Errorf("%s is asked %q: %v", subject, m.Data, err)
		}
		if document != nil {
			_ = m.Respond(document)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() { _ = sub.Unsubscribe() }
}

// caughtUp waits until every message of the stream is acknowledged.
func (w *world) caughtUp(t testing.TB) {
	t.Helper()
	testenv.Eventually(t, within, "all applied", func() error {
		stream, err := w.js.Stream(context.Background(), streams.Invalidations)
		if err != nil {
			return err
		}
		consumer, err := w.js.Consumer(context.Background(), streams.Invalidations, streams.BillingDurable)
		if err != nil {
			return err
		}
		if last, floor := stream.CachedInfo().State.LastSeq, consumer.CachedInfo().AckFloor.Stream; floor != last {
			return fmt.Errorf("%d of %d", floor, last)
		}
		return nil
	})
}

// fataler is what testing.T and rapid.T share of what ask needs.
type fataler interface {
	Helper()
	Context() context.Context
	Fatalf(format string, args ...any)
}

func (w *world) ask(t fataler, key events.SigningKey, at int64) events.AttributeAnswer {
	t.Helper()
	answer, err := w.billing.Attribute(t.Context(), events.AttributeQuery{PublicKey: key.Public(), At: at})
	if err != nil {
		t.Fatalf("attribute: %v", err)
	}
	return answer
}

// owns checks a key's interval at its edges and beyond. until 0: it is current.
func (w *world) owns(t fataler, s *subtest.Service, key events.SigningKey, from, until int64) {
	t.Helper()
	known := events.AttributeAnswer{AppID: s.Target.App, ServiceID: s.Target.Service, From: from}
	if until != 0 {
		known.Until = &until
	}
	expect := func(at int64, result, reason string) {
		t.Helper()
		want := known
		want.Result, want.Reason = result, reason
		if diff := cmp.Diff(want, w.ask(t, key, at), cmp.Comparer(func(a, b events.AppID) bool { return a == b }),
			cmp.Comparer(func(a, b events.ServiceID) bool { return a == b })); diff != "" {
			t.Fatalf("at %+d:\n%s", at-start, diff)
		}
	}
	expect(from-1, events.Invalid, events.NotYetValid)
	switch until {
	case 0:
		expect(from, events.Valid, "")
		expect(from+1_000_000, events.Valid, "")
	case from: // a reset in the same second
		expect(from, events.Invalid, events.ExpiredKey)
	default:
		expect(from, events.Valid, "")
		expect(until-1, events.Valid, "")
		expect(until, events.Invalid, events.ExpiredKey)
		expect(until+1_000_000, events.Invalid, events.ExpiredKey)
	}
}

func TestIntervals(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		s := subtest.NewService(t, "life")
		s.Bind(start)
		s.Rotate(start+1000, 300)
		s.Rotate(start+1100, 300)
		s.Reset(start + 1200)
		s.Rotate(start+2000, 0)
		s.Revoke(start + 3000)
		s.Bind(start + 4000)
		s.Rotate(start+5000, 300)
		s.EndEarlier(start + 5100)
		w.registry.Publish(t, w.js, s.Events...)
		w.caughtUp(t)
		w.owns(t, s, s.Keys[0], start, start+1200)      // its grace ended by the reset
		w.owns(t, s, s.Keys[1], start+1000, start+1200) // as this one's
		w.owns(t, s, s.Keys[2], start+1100, start+1200)
		w.owns(t, s, s.Keys[3], start+1200, start+2000) // an emergency rotation: no grace
		w.owns(t, s, s.Keys[4], start+2000, start+3000)
		w.owns(t, s, s.Keys[5], start+4000, start+5100) // its grace ended by an emergency rotation
		w.owns(t, s, s.Keys[6], start+5000, start+5100)
		w.owns(t, s, s.Keys[7], start+5100, 0)
		if got := w.ask(t, events.GenerateSigningKey(), start); got != (events.AttributeAnswer{Result: events.Invalid, Reason: events.UnknownKey}) {
			t.Errorf("a key that nobody had: %+v", got)
		}
		testenv.Eventually(t, within, "ready", w.billing.Ready)
	})
}

// TestAnyOrder: late, repeated and disordered events end in the same answers.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		s := subtest.NewService(t, fmt.Sprint("any", round))
		s.Bind(start)
		s.Rotate(start+100, 300)
		s.Rotate(start+200, 300)
		s.Reset(start + 300)
		s.Rotate(start+400, 100)
		s.EndEarlier(start + 450)
		list := rapid.Permutation(s.Events).Draw(rt, "order")
		list = slices.Concat(list, rapid.SliceOfN(rapid.SampledFrom(list), 0, 3).Draw(rt, "again"))
		w.registry.Publish(t, w.js, list...)
		w.caughtUp(t)
		w.owns(rt, s, s.Keys[0], start, start+300)
		w.owns(rt, s, s.Keys[1], start+100, start+300)
		w.owns(rt, s, s.Keys[2], start+200, start+300)
		w.owns(rt, s, s.Keys[3], start+300, start+450)
		w.owns(rt, s, s.Keys[4], start+400, start+450)
		w.owns(rt, s, s.Keys[5], start+450, 0)
	})
}

// TestGap: what a gap could touch is not answered until the registry's history has filled it.
func TestGap(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		s := subtest.NewService(t, "gap")
		s.Bind(start)
		s.Rotate(start+100, 300)
		s.Rotate(start+200, 300)
		s.Reset(start + 300) // missing
		s.Rotate(start+400, 300)
		w.registry.Publish(t, w.js, s.Events[0], s.Events[1], s.Events[2], s.Events[4])
		w.caughtUp(t)

		w.owns(t, s, s.Keys[4], start+400, 0) // no missing event can change what is known of the newest key
		stranger := events.GenerateSigningKey()
		unsure := map[string]events.SigningKey{
			"a key whose grace is known, and which the missing reset ended earlier": s.Keys[0],
			"a key that the missing event ended":                                    s.Keys[2],
			"a key that the missing event brought":                                  s.Keys[3],
			"a key that a missing event may have brought":                           stranger,
		}
		unavailable := func(step string) {
			t.Helper()
			for what, key := range unsure {
				_, err := w.billing.Attribute(t.Context(), events.AttributeQuery{PublicKey: key.Public(), At: start + 150})
				if problem := (*api.Problem)(nil); !errors.As(err, &problem) || problem.Status != 503 || !errors.Is(err, billingsub.ErrUnavailable) {
					t.Errorf("%s, %s: got %v, want a 503", step, what, err)
				}
			}
		}
		unavailable("without a registry")
		strange := events.GenerateSigningKey()
		stop, stopKeys := w.serveHistory(t, s, strange), w.serveKeys(t, strange, s)
		unavailable("with answers that the registry did not sign")
		stop()
		stopKeys()

		w.serveHistory(t, s, w.registry.Key)
		w.serveKeys(t, w.registry.Key, s)
		w.owns(t, s, s.Keys[0], start, start+300)
		w.owns(t, s, s.Keys[1], start+100, start+300)
		w.owns(t, s, s.Keys[2], start+200, start+300)
		w.owns(t, s, s.Keys[3], start+300, start+700)
		w.owns(t, s, s.Keys[4], start+400, 0)
		if got := w.ask(t, stranger, start).Reason; got != events.UnknownKey {
			t.Errorf("a stranger's key, when the gap is filled: %s", got)
		}
		w.registry.Publish(t, w.js, s.Events[3]) // late
		w.caughtUp(t)
		w.owns(t, s, s.Keys[2], start+200, start+300)
	})
}

// TestGapFillsByItself: nobody has to ask about the service, and nothing but the 64 newest events is in the stream.
func TestGapFillsByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	var services []*subtest.Service
	for i := range 3 {
		s := subtest.NewService(t, fmt.Sprint("long", i))
		s.Bind(start)
		for j := range int64(80) {
			s.Rotate(start+100*(j+1), 50)
		}
		services = append(services, s)
		w.registry.Publish(t, w.js, s.Events[17:]...) // what is left of them
	}
	w.caughtUp(t)
	for _, s := range services {
		w.serveHistory(t, s, w.registry.Key)
	}
	for _, s := range services {
		testenv.Eventually(t, within, "the first key known", func() error {
			answer, err := w.billing.Attribute(t.Context(), events.AttributeQuery{PublicKey: s.Keys[0].Public(), At: start})
			if err == nil && answer.Result != events.Valid {
				err = errors.New(answer.Reason)
			}
			return err
		})
		for i, key := range s.Keys[:len(s.Keys)-1] {
			w.owns(t, s, key, start+100*int64(i), start+100*int64(i+1)+50)
		}
	}
}

// TestEndpoint asks as others do, over NATS.
func TestEndpoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	s := subtest.NewService(t, "endpoint")
	w.registry.Publish(t, w.js, s.Bind(start))
	w.caughtUp(t)
	service, err := api.Register(t.Context(), w.nc, slog.New(slog.DiscardHandler),
		api.Service{Name: "omi-billing", Description: "test"}, w.billing.Endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	question := fmt.Sprintf(`{"public_key": "%s", "at": %d}`, s.Current().Public(), start)
	reply, err := w.nc.RequestWithContext(t.Context(), events.BillingAttributeSubject, []byte(question))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"result":"valid","app_id":"%s","service_id":"%s","from":%d}`, s.Target.App, s.Target.Service, start)
	if string(reply.Data) != want {
		t.Errorf("got %s\nwant %s", reply.Data, want)
	}
}

// TestHealthy: without its database, Billing answers nobody, and says so.
func TestHealthy(t *testing.T) {
	t.Parallel()
	database, err := url.Parse(testenv.Database(t, testenv.Postgres))
	if err != nil {
		t.Fatal(err)
	}
	way := testenv.NewProxy(t, database.Host)
	database.Host = way.Addr()
	w := newWorld(t, database.String())
	healthy := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		report, err := health.New(slog.New(slog.DiscardHandler), health.Parts(w.billing.Checks())...).Report(ctx)
		if err != nil || report.Ready {
			return err
		}
		return errors.New(report.Text())
	}
	testenv.Eventually(t, within, "it is healthy", healthy)
	way.Cut()
	if err := healthy(); err == nil || !strings.Contains(err.Error(), "database: ") {
		t.Errorf("its database is away, and it says %v", err)
	}
	way.Restore()
	testenv.Eventually(t, within, "it is healthy again", healthy)
}
