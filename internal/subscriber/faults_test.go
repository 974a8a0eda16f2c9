package subscriber_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/billingsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestFailBetweenAnyTwoSteps: any I/O step of Auth or Billing fails, either not done or done with
// an unknown outcome. Then the process goes on, or dies and another one takes over. Each event has
// its effect once, messages that must not be applied are set aside, and answers follow the events.
func TestFailBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	accounts := testenv.NewAccounts(t)
	must := []string{
		"BEGIN", "COMMIT", "INSERT INTO applied", "INSERT INTO keys", "INSERT INTO cutoffs", "INSERT INTO services",
		"INSERT INTO set_aside", "DELETE FROM set_aside", "PUB $JS.ACK", "PUB $JS.API.CONSUMER.MSG",
	}
	for _, party := range []struct {
		durable string
		open    opener
		store   func(testing.TB, string) *storage.Store
	}{{streams.InstanceDurable(streams.AuthDurable, "one"), openAuth, openAuthStore}, {streams.BillingDurable, openBilling, openStore}} {
		for _, engine := range testenv.Engines() {
			t.Run(party.durable+"/"+engine, func(t *testing.T) {
				t.Parallel()
				database := testenv.Databases(t, engine)
				testenv.EveryStep(t, must, func(t *testing.T) func(context.Context, *testenv.Faults) error {
					url := database()
					place := faultPlace{durable: party.durable, open: party.open, url: url, store: party.store(t, url), accounts: accounts}
					var err error
					if place.db, err = sqldb.Open(t.Context(), url, discard()); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = place.db.Close() })
					place.registry = subtest.NewRegistry(t, events.GenerateSigningKey())
					place.services = func() []*subtest.Service {
						return []*subtest.Service{subtest.NewService(t, "a"), subtest.NewService(t, "b")}
					}
					return place.run
				})
			})
		}
	}
}

// program is an Auth Provider or a Billing Service.
type program struct {
	testenv.Program
	// knows returns what is wrong with the answers about a service.
	knows func(context.Context, *subtest.Service) error
}

type opener func(context.Context, jetstream.JetStream, *faultPlace, *testenv.Faults) (program, error)

// nobody is a registry that never answers: the answers follow from the events alone.
type nobody struct{}

func (nobody) ServiceRecord(context.Context, events.Target) (events.ServiceRecord, error) {
	return events.ServiceRecord{}, registryclient.ErrUnknownService
}

func (nobody) HistoryPart(context.Context, events.Target, int64) (events.ServiceHistory, error) {
	return events.ServiceHistory{}, errors.New("away")
}

func (nobody) Key(context.Context, events.PublicKey) (events.KeyRecord, error) {
	return events.KeyRecord{}, errors.New("away")
}

func now() time.Time { return time.Unix(start+40, 0) }

func openAuth(ctx context.Context, js jetstream.JetStream, p *faultPlace, faults *testenv.Faults) (program, error) {
	auth, err := authsub.New(sqldb.Wrap(ctx, faults.Session), authsub.Config{
		JetStream: js, DatabaseURL: p.url, Instance: "one", Trust: p.registry.Trust, Registry: nobody{}, Log: faults.Log, Now: now,
	})
	if err != nil {
		return program{}, err
	}
	return program{testenv.Program{Run: auth.Run, Close: auth.Close}, func(ctx context.Context, s *subtest.Service) error {
		keys := s.Keyring()
		for _, key := range s.Keys {
			known, _ := keys.Find(key.Public())
			message := []byte("a request")
			answer := auth.Verify(ctx, events.VerifyQuery{Target: s.Target, Message: message, Signature: key.Sign(message)})
			if good := keys.Until(known) > now().Unix(); good != (answer.Result == events.Accepted) {
				return fmt.Errorf("Auth says of a key of %s: %+v, want it good: %t", s.Target, answer, good)
			}
		}
		return nil
	}}, nil
}

func openBilling(ctx context.Context, js jetstream.JetStream, p *faultPlace, faults *testenv.Faults) (program, error) {
	billing, err := billingsub.New(sqldb.Wrap(ctx, faults.Session), billingsub.Config{
		JetStream: js, DatabaseURL: p.url, Trust: p.registry.Trust, Registry: nobody{}, Log: faults.Log, Now: now,
	})
	if err != nil {
		return program{}, err
	}
	return program{testenv.Program{Run: billing.Run, Close: billing.Close}, func(ctx context.Context, s *subtest.Service) error {
		keys := s.Keyring()
		for _, key := range s.Keys {
			known, _ := keys.Find(key.Public())
			answer, err := billing.Attribute(ctx, events.AttributeQuery{PublicKey: key.Public(), At: now().Unix()})
			if good := keys.Until(known) > now().Unix(); err != nil || good != (answer.Result == events.Valid) || answer.ServiceID != s.Target.Service {
				return fmt.Errorf("Billing says of a key of %s: %+v, %w, want it good: %t", s.Target, answer, err, good)
			}
		}
		return nil
	}}, nil
}

// faultPlace is a database in which one history after the other is applied.
type faultPlace struct {
	durable  string
	open     opener
	url      string
	store    *storage.Store // without faults, for the test's own work
	db       *sqldb.DB
	accounts *testenv.Accounts
	registry *subtest.Registry
	services func() []*subtest.Service
	runs     int
}

// faultRun is one history.
type faultRun struct {
	place  *faultPlace
	ctx    context.Context
	heirs  *testenv.Heirs
	living program
}

func (p *faultPlace) run(ctx context.Context, faults *testenv.Faults) error {
	for _, table := range []string{"applied", "keys", "cutoffs", "services", "set_aside"} {
		if _, err := p.db.Exec(ctx, "DELETE FROM "+table); err != nil {
			return fmt.Errorf("empty the database: %w", err)
		}
	}
	p.runs++
	h, err := testenv.NewHeirs(p.accounts, fmt.Sprintf("%p-%d", p, p.runs), faults)
	if err != nil {
		return err
	}
	r := &faultRun{place: p, ctx: ctx, heirs: h}
	h.Open, h.Stream, h.Durable = r.open, streams.Invalidations, p.durable
	return errors.Join(r.play(faults), h.End())
}

func (r *faultRun) open(conn *nats.Conn, faults *testenv.Faults) (testenv.Program, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return testenv.Program{}, err
	}
	r.living, err = r.place.open(r.ctx, js, r.place, faults)
	return r.living.Program, err
}

// play plays the history, waits until everything is quiet, and checks the result.
func (r *faultRun) play(faults *testenv.Faults) error {
	js := r.heirs.JetStream
	if _, err := js.CreateStream(r.ctx, streams.InvalidationsConfig()); err != nil {
		return err
	}
	if err := r.heirs.Start(r.ctx); err != nil {
		return err
	}
	services := r.place.services()
	a, b := services[0], services[1]
	trusted, stranger := r.place.registry.Key, events.GenerateSigningKey()
	type message struct {
		event events.Invalidation
		by    events.SigningKey
	}
	bindA := a.Bind(start)
	published := uint64(0)
	for _, round := range [][]message{
		{{bindA, trusted}, {b.Bind(start), trusted}},
		{{a.Rotate(start+10, 300), trusted}, {bindA, trusted}, {b.Rotate(start+10, 300), stranger}},
		{{a.Reset(start + 20), trusted}, {b.Events[1], trusted}, {a.Rotate(start+30, 5), trusted}},
	} {
		for _, m := range round {
			if _, err := js.Publish(r.ctx, m.event.Subject(), m.event.Sign(m.by)); err != nil {
				return err
			}
			published++
		}
		if err := r.heirs.Quiet(r.ctx, func() (bool, error) { return r.acknowledged(published) }); err != nil {
			return err
		}
	}
	faults.Disarm()
	if err := r.heirs.Nurse(r.ctx); err != nil { // the process may have died in its very last step
		return err
	}
	return r.check(services)
}

// acknowledged reports whether all messages are acknowledged.
func (r *faultRun) acknowledged(published uint64) (bool, error) {
	consumer, err := r.heirs.JetStream.Consumer(r.ctx, streams.Invalidations, r.place.durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return consumer.CachedInfo().AckFloor.Stream == published, nil
}

// check compares the database and the answers with the events.
func (r *faultRun) check(services []*subtest.Service) error {
	want := 0
	for _, s := range services {
		want += len(s.Events)
		got, _, err := r.place.store.KeyringOf(r.ctx, s.Target)
		if err != nil {
			return err
		}
		if diff := diffKeyrings(s.Keyring(), got.Keyring); diff != "" || got.Gap || got.Sequence != int64(len(s.Events)) {
			return fmt.Errorf("%s: sequence %d, gap %t, and the database is not what the events say:\n%s", s.Target, got.Sequence, got.Gap, diff)
		}
		if err := r.living.knows(r.ctx, s); err != nil {
			return err
		}
	}
	// An event that took effect twice would be counted twice.
	var applied, counted int
	const query = "SELECT (SELECT COUNT(*) FROM applied), (SELECT COALESCE(SUM(sequenced), 0) FROM services)"
	if err := r.place.db.QueryRow(r.ctx, query).Scan(&applied, &counted); err != nil {
		return err
	}
	if applied != want || counted != want {
		return fmt.Errorf("%d events were applied, and %d counted, want %d", applied, counted, want)
	}
	aside, err := r.place.store.ListSetAside(r.ctx, 10)
	if err != nil || len(aside) != 1 {
		return fmt.Errorf("%d messages are set aside, want the one that a stranger signed: %w", len(aside), err)
	}
	return nil
}
