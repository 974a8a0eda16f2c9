package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/keyring"
	"omiappreg.org/keyrotation/streams"
)

// TestFailBetweenAnyTwoSteps: whichever I/O step of a registry fails, not done or done and not known to be, and whether it
// goes on or dies there and another takes over: every request has one answer, the right one, every change one event, and the
// database is sound.
func TestFailBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	accounts := testenv.NewAccounts(t)
	must := []string{
		"BEGIN", "COMMIT", "SELECT FROM services", "UPDATE services", "INSERT INTO services", "INSERT INTO history",
		"INSERT INTO outbox", "DELETE FROM outbox", "PUB omi.v1.invalidations", "PUB omi.v1.receipts", "PUB $JS.ACK",
		"PUB $JS.API.CONSUMER.MSG",
	}
	for _, engine := range testenv.Engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			database := testenv.Databases(t, engine)
			testenv.EveryStep(t, must, func(t *testing.T) func(context.Context, *testenv.Faults) error {
				url := database()
				place := faultPlace{url: url, store: openStore(t, url), accounts: accounts}
				place.developer = newDeveloper(t, place.store, "org.omiappreg.alice", "a")
				return place.run
			})
		})
	}
}

// faultPlace is a database, where one history after the other is played.
type faultPlace struct {
	url       string
	store     *Store // without faults, as all that the test itself does
	accounts  *testenv.Accounts
	developer *developer
	runs      int
}

// faultRun is one history.
type faultRun struct {
	place    *faultPlace
	ctx      context.Context
	heirs    *testenv.Heirs
	started  time.Time
	receipts *nats.Subscription
	trust    events.Trust
}

// asked is a request, and the answer that it must have.
type asked struct {
	request
	want  events.Reason // empty: committed
	again bool          // sent before: the first receipt
}

func (p *faultPlace) run(ctx context.Context, faults *testenv.Faults) error {
	for _, table := range []string{"services", "history", "outbox", "dead_letters"} {
		if _, err := p.store.db.Exec(ctx, "DELETE FROM "+table); err != nil {
			return fmt.Errorf("empty the database: %w", err)
		}
	}
	p.runs++
	h, err := testenv.NewHeirs(p.accounts, fmt.Sprintf("%p-%d", p, p.runs), faults)
	if err != nil {
		return err
	}
	r := &faultRun{place: p, ctx: ctx, heirs: h, started: time.Now()}
	h.Open, h.Stream, h.Durable = r.open, streams.Requests, streams.RegistryDurable
	return errors.Join(r.play(faults), h.End())
}

// now is a clock that runs fast, so that leases end soon.
func (r *faultRun) now() time.Time { return r.started.Add(10 * time.Since(r.started)) }

func (r *faultRun) open(conn *nats.Conn, faults *testenv.Faults) (testenv.Program, error) {
	store, err := OpenStore(sqldb.Wrap(r.ctx, faults.Session), r.place.url, faults.Log)
	if err != nil {
		return testenv.Program{}, err
	}
	registry, err := New(Config{
		Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store, Conn: conn, Batch: 4, Now: r.now, Log: faults.Log,
	})
	if err != nil {
		return testenv.Program{}, err
	}
	return testenv.Program{Run: registry.Run, Close: store.Close}, nil
}

// play plays the history, waits until all is quiet, and looks at what has become of it.
func (r *faultRun) play(faults *testenv.Faults) (err error) {
	js := r.heirs.JetStream
	if r.receipts, err = js.Conn().SubscribeSync(events.ReceiptSubject + ">"); err != nil {
		return err
	}
	if r.trust, err = events.NewTrust(testOrigin, testKey.Public()); err != nil {
		return err
	}
	// One broker has room for the accounts of all steps.
	if err := EnsureStreamsWithin(r.ctx, js, 1, StreamLimits{RequestBytes: 1 << 20, ReceiptBytes: 1 << 20}); err != nil {
		return err
	}
	if err := r.heirs.Start(r.ctx); err != nil {
		return err
	}
	rounds := r.place.history()
	for _, round := range rounds {
		for _, a := range round {
			if _, err := js.Publish(r.ctx, a.draft.Subject(), a.payload); err != nil {
				return err
			}
		}
		if err := r.answers(round); err != nil {
			return err
		}
	}
	if err := r.heirs.Quiet(r.ctx, r.quiet); err != nil {
		return err
	}
	faults.Disarm()
	return r.check(slices.Concat(rounds...))
}

// history returns what services and their developer ask for, round by round: a request is sent when those before it are
// answered.
func (p *faultPlace) history() [][]asked {
	a, b, c := p.developer.another("a"), p.developer.another("b"), p.developer.another("c")
	stranger := events.GenerateSigningKey()
	rotated := asked{}
	return [][]asked{
		{
			{request: a.bind()},
			{request: b.bind()},
			{request: c.sign(events.Rotation, events.GenerateSigningKey(), stranger), want: events.UnknownService},
		},
		{
			{request: a.sign(events.Rotation, events.GenerateSigningKey(), stranger), want: events.InvalidSignature},
			func() asked { rotated = asked{request: a.rotate()}; return rotated }(),
			{request: b.revoke()},
			{request: c.bind()},
		},
		{
			{request: a.reset()},
			{request: b.bind()},
			{request: rotated.request, again: true},
			{request: request{rotated.draft, []byte("{")}, want: events.MalformedMessage},
		},
	}
}

// answers waits until each request of a round is answered.
func (r *faultRun) answers(round []asked) error {
	open := map[string]bool{}
	for _, a := range round {
		open[a.key()] = true
	}
	for len(open) > 0 {
		if err := r.ctx.Err(); err != nil {
			return fmt.Errorf("%d requests have no answer: %w", len(open), err)
		}
		if err := r.heirs.Nurse(r.ctx); err != nil {
			return err
		}
		msg, err := r.receipts.NextMsg(50 * time.Millisecond)
		if errors.Is(err, nats.ErrTimeout) {
			continue
		}
		if err != nil {
			return err
		}
		receipt, err := r.trust.Receipt(msg.Subject, msg.Data)
		if err != nil {
			return err
		}
		delete(open, keyOf(&receipt))
	}
	return nil
}

// key tells the answers of requests apart: a refusal names the bytes that it refuses, a commit its nonce.
func (a asked) key() string {
	if a.want != "" {
		return events.RequestHash(a.payload)
	}
	return a.draft.Nonce.String()
}

func keyOf(receipt *events.Receipt) string {
	if receipt.Event == events.RequestRejected {
		return receipt.RequestHash
	}
	return receipt.RequestNonce.String()
}

// quiet reports whether no request waits for its acknowledgement, and no message for its stream.
func (r *faultRun) quiet() (bool, error) {
	stream, err := r.heirs.JetStream.Stream(r.ctx, streams.Requests)
	if err != nil {
		return false, err
	}
	report, err := r.place.store.Admin().Check(r.ctx, nil, r.now())
	return stream.CachedInfo().State.Msgs == 0 && report.Outbox == 0, err
}

// check holds streams and database against what was asked for.
func (r *faultRun) check(list []asked) error {
	report, err := r.place.store.Admin().Check(r.ctx, &r.trust, r.now())
	if err != nil || len(report.Violations) > 0 || report.DeadLetters > 0 {
		return fmt.Errorf("check: %w %v, %d dead letters", err, report.Violations, report.DeadLetters)
	}
	receipts := map[string]map[events.Nonce]events.Receipt{}
	err = r.read(streams.Receipts, func(subject string, data []byte) error {
		receipt, err := r.trust.Receipt(subject, data)
		key := keyOf(&receipt)
		if receipts[key] == nil {
			receipts[key] = map[events.Nonce]events.Receipt{}
		}
		receipts[key][receipt.Nonce] = receipt
		return err
	})
	if err != nil {
		return err
	}
	committed := map[events.Target]int{}
	for _, a := range list {
		if len(receipts[a.key()]) != 1 {
			return fmt.Errorf("the %s of %s (%s) has %d receipts: %+v", a.draft.Kind, a.draft.Target, a.want, len(receipts[a.key()]), receipts[a.key()])
		}
		for _, receipt := range receipts[a.key()] {
			if receipt.Reason != a.want {
				return fmt.Errorf("the %s of %s was answered with %q, want %q", a.draft.Kind, a.draft.Target, receipt.Reason, a.want)
			}
		}
		if a.want == "" && !a.again {
			committed[a.draft.Target]++
		}
	}
	return r.checkEvents(committed)
}

// checkEvents holds the events, each of which is in the stream once, against the database.
func (r *faultRun) checkEvents(committed map[events.Target]int) error {
	streamed := map[events.Target][]events.Invalidation{}
	err := r.read(streams.Invalidations, func(subject string, data []byte) error {
		event, err := r.trust.Invalidation(subject, data)
		streamed[event.Target] = append(streamed[event.Target], event)
		return err
	})
	if err != nil {
		return err
	}
	for target, changes := range committed {
		history, err := r.place.store.history(r.ctx, target)
		if err != nil {
			return err
		}
		if len(history) != changes || len(streamed[target]) != changes {
			return fmt.Errorf("%s: %d changes were asked for, %d are committed, %d events are in the stream", target, changes, len(history), len(streamed[target]))
		}
		if diff := cmp.Diff(keyring.Collect(history), keyring.Collect(streamed[target]), cmp.AllowUnexported(events.PublicKey{})); diff != "" {
			return fmt.Errorf("%s: who follows the stream knows something else than the registry:\n%s", target, diff)
		}
		delete(streamed, target)
	}
	if len(streamed) > 0 {
		return fmt.Errorf("nobody asked for the events of %d services", len(streamed))
	}
	return nil
}

// read reads a stream.
func (r *faultRun) read(name string, each func(subject string, data []byte) error) error {
	stream, err := r.heirs.JetStream.Stream(r.ctx, name)
	if err != nil {
		return err
	}
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		msg, err := stream.GetMsg(r.ctx, seq)
		if err != nil {
			return err
		}
		if err := each(msg.Subject, msg.Data); err != nil {
			return err
		}
	}
	return nil
}
