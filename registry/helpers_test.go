package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/restore"
)

// testLog writes to the test's own output.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// decideBatch takes requests through load, admit, decide and confirm.
func decideBatch(ctx context.Context, in *intake, todo []decision.Incoming) (*decision.Batch, error) {
	st, err := in.load(ctx, todo)
	if err != nil {
		return nil, err
	}
	todo, onHold, err := in.guard.Admit(ctx, st, todo)
	if err != nil {
		return nil, err
	}
	b := in.decide(st, todo)
	b.OnHold = onHold
	return b, in.confirm(ctx, b)
}

// decideAndCommit brings requests to their end, but for what is to be said. It returns their outcomes, in no order.
func decideAndCommit(ctx context.Context, in *intake, todo []decision.Incoming) (outcomes []decision.Outcome, err error) {
	for range mostFutile {
		b, err := decideBatch(ctx, in, todo)
		if err != nil {
			return nil, err
		}
		lost, err := in.store.ledger.Commit(ctx, b.Groups, b.At)
		in.memory.learn(in.now(), b, lost, err)
		if err != nil {
			return nil, err
		}
		b.SignRefusals()
		for _, g := range b.Groups {
			if !lost.Services[g.Target] {
				outcomes = append(outcomes, g.Outcomes...)
			}
		}
		if todo = b.RequestsOf(lost.Services); len(todo) == 0 {
			return outcomes, nil
		}
		slices.SortStableFunc(todo, func(a, b decision.Incoming) int { return cmp.Compare(a.Index, b.Index) })
	}
	return nil, errFutile
}

// developer is an app's developer with one service at hand, and its keys.
type developer struct {
	t       testing.TB
	target  events.Target
	master  events.SigningKey
	current events.SigningKey
	now     func() time.Time
}

// newDeveloper adds an app to the store.
func newDeveloper(t testing.TB, store *Store, app, service string) *developer {
	t.Helper()
	d := &developer{t: t, master: events.GenerateSigningKey(), now: time.Now}
	var err error
	if d.target, err = events.ParseTarget(app + "." + service); err != nil {
		t.Fatal(err)
	}
	if err := store.Admin().AddApp(t.Context(), App{d.target.App, d.master.Public()}, 1); err != nil {
		t.Fatal(err)
	}
	return d
}

// another returns the same developer with another service of the same app.
func (d *developer) another(service string) *developer {
	other := *d
	other.target.Service, _ = events.ParseServiceID(service)
	other.current = events.SigningKey{}
	return &other
}

// request is a signed request on its way.
type request struct {
	draft   events.Draft
	payload []byte
}

func (d *developer) draft(kind events.RequestKind, newKey events.SigningKey) events.Draft {
	return events.Draft{Kind: kind, Target: d.target, Timestamp: d.now().Unix(), Nonce: events.NewNonce(), NewKey: newKey, Origin: testOrigin}
}

func (d *developer) sign(kind events.RequestKind, newKey, by events.SigningKey) request {
	d.t.Helper()
	draft := d.draft(kind, newKey)
	payload, err := draft.Sign(by)
	if err != nil {
		d.t.Fatal(err)
	}
	return request{draft, payload}
}

// bind, rotate, reset and revoke return a request that stands, and go on with the new key.
func (d *developer) bind() request  { return d.next(events.Binding, d.master) }
func (d *developer) reset() request { return d.next(events.Reset, d.master) }
func (d *developer) rotate() request {
	return d.next(events.Rotation, d.current)
}

// emergency ends every key that the service had before.
func (d *developer) emergency() request {
	d.t.Helper()
	draft := d.draft(events.Rotation, events.GenerateSigningKey())
	draft.GracePeriod, draft.EndEarlier = new(int64), true
	payload, err := draft.Sign(d.current)
	if err != nil {
		d.t.Fatal(err)
	}
	d.current = draft.NewKey
	return request{draft, payload}
}

func (d *developer) revoke() request {
	defer func() { d.current = events.SigningKey{} }()
	return d.sign(events.Revocation, events.SigningKey{}, d.master)
}

func (d *developer) next(kind events.RequestKind, by events.SigningKey) request {
	d.t.Helper()
	newKey := events.GenerateSigningKey()
	r := d.sign(kind, newKey, by)
	d.current = newKey
	return r
}

// eachRow runs a query, row by row.
func eachRow(ctx context.Context, s *Store, query string, args []any, row func(sqldb.Row) error) error {
	var p sqldb.Pipeline
	p.Query("query", query, args, row)
	return s.db.Run(ctx, &p)
}

// history reads every change of a service, in its order.
func (s *Store) history(ctx context.Context, t events.Target) ([]events.Invalidation, error) {
	var list []events.Invalidation
	err := eachRow(ctx, s, `SELECT sequence, event, old_public_key, public_key, grace_period_expiry, committed_at, event_nonce, end_earlier
		FROM history WHERE service = (SELECT id FROM services WHERE target = $1) ORDER BY sequence`, []any{t.String()}, func(row sqldb.Row) error {
		e := events.Invalidation{Target: t}
		var endEarlier int64
		var old, key []byte
		var nonce string
		if err := row.Scan(&e.Sequence, &e.Event, &old, &key, &e.GracePeriodExpiry, &e.Timestamp, &nonce, &endEarlier); err != nil {
			return err
		}
		var errs [3]error
		if old != nil {
			e.OldKey, errs[0] = events.PublicKeyFromBytes(old)
		}
		if key != nil {
			e.NewKey, errs[1] = events.PublicKeyFromBytes(key)
		}
		e.Nonce, errs[2] = events.ParseNonce(nonce)
		e.EndEarlier = endEarlier == 1
		list = append(list, e)
		return errors.Join(errs[:]...)
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of %s: %w", t, err)
	}
	return list, nil
}

// newGuard returns the restore guard of a database that was not compared yet.
func newGuard(t testing.TB, store *Store, js jetstream.JetStream) *restore.Guard {
	t.Helper()
	trust, err := events.NewTrust(testOrigin, testKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	return restore.New(restore.Config{
		Ledger: store.ledger, Sessions: store.db, JetStream: js, Trust: trust, Log: testLog(t), Metrics: prometheus.NewRegistry(),
	})
}

// openGuard is a restore guard for tests of a database that lacks nothing.
type openGuard struct{}

func (openGuard) Epoch() (int, bool)              { return 0, true }
func (openGuard) Same(context.Context, int) error { return nil }
func (openGuard) Admit(
	_ context.Context, _ *decision.State, todo []decision.Incoming,
) (admitted, onHold []decision.Incoming, err error) {
	return todo, nil, nil
}
func (openGuard) Answers(events.Target, int64) error  { return nil }
func (openGuard) AnswersNoKey(events.PublicKey) error { return nil }
