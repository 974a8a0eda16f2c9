package registry

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/internal/vectors"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/outbox"
)

// TestVectorRequests sends every case, alone, to the real decision with a real database behind it that holds the
// state of the case's file, on every engine.
func TestVectorRequests(t *testing.T) {
	t.Parallel()
	set := vectors.Load(t)
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		for _, file := range set.Requests {
			for _, c := range file.Cases {
				// Cases share a database, one after the other, and each finds it in the state of its file.
				t.Run(c.Name, func(t *testing.T) {
					loadState(t, store, file.State)
					checkVector(t, store, file.State, c)
				})
			}
		}
	})
}

func checkVector(t *testing.T, store *Store, state vectors.State, c vectors.RequestCase) {
	policy := Policy{
		Origin: state.Origin, RequireProof: c.Proofs(state),
		GracePeriod: time.Duration(state.GracePeriod) * time.Second, MaxClockSkew: time.Duration(state.MaxClockSkew) * time.Second,
	}
	in := newTestIntake(t, store, policy, func() time.Time { return time.Unix(c.ProcessedAt, 0) })
	before := dump(t, store)
	in.told = toldOf(t, state)
	one := decision.NewIncoming(c.Subject, c.Message(), c.StoredAt, 0)
	one.Place = decision.Place{Stream: c.Stream, Sequence: c.Sequence}
	outcomes, err := decideAndCommit(t.Context(), in, []decision.Incoming{one})
	if err != nil {
		t.Fatal(err)
	}
	o := &outcomes[0]
	after := dump(t, store)

	receipt := readReceipt(t, in, o)
	switch c.Expect {
	case vectors.Committed:
		if o.Verdict != decision.Committed {
			t.Fatalf("refused: %s (%s), want committed", o.Reason, o.Detail)
		}
		checkCommitted(t, in, c, o, receipt, before, after)
	case vectors.Duplicate:
		if o.Verdict != decision.Duplicate {
			t.Fatalf("verdict %v %s, want the first receipt again", o.Verdict, o.Reason)
		}
		if c.ExpectSequence != 0 && receipt.Sequence != c.ExpectSequence {
			t.Errorf("the receipt is of sequence %d, want %d", receipt.Sequence, c.ExpectSequence)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("a duplicate changed the database:\n%s", diff)
		}
	default:
		if o.Verdict != decision.Refused || o.Reason != events.Reason(c.Expect) {
			t.Fatalf("verdict %v, reason %q (%s), want %s", o.Verdict, o.Reason, o.Detail, c.Expect)
		}
		if receipt.Event != events.RequestRejected || receipt.Reason != o.Reason || receipt.Detail == "" {
			t.Errorf("the receipt does not tell the refusal: %+v", receipt)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("a refusal changed the database:\n%s", diff)
		}
	}
}

func checkCommitted(t *testing.T, in *intake, c vectors.RequestCase, o *decision.Outcome, receipt events.Receipt, before, after contents) {
	t.Helper()
	event, err := testTrust(t, in).Invalidation(o.Event.Subject(), o.EventBytes)
	if err != nil {
		t.Fatalf("the event can't be applied: %v", err)
	}
	if c.ExpectGrace != nil && event.GracePeriodExpiry-event.Timestamp != *c.ExpectGrace {
		t.Errorf("grace period %d s, want %d s", event.GracePeriodExpiry-event.Timestamp, *c.ExpectGrace)
	}
	if c.ExpectEvent != "" && event.Event != events.EventKind(c.ExpectEvent) {
		t.Errorf("event %s, want %s", event.Event, c.ExpectEvent)
	}
	if c.ExpectSequence != 0 && event.Sequence != c.ExpectSequence {
		t.Errorf("sequence %d, want %d", event.Sequence, c.ExpectSequence)
	}
	if event.Timestamp != c.ProcessedAt {
		t.Errorf("timestamp %d, want that of the commit, %d", event.Timestamp, c.ProcessedAt)
	}
	if receipt.Event != events.RequestCommitted || receipt.Sequence != event.Sequence || receipt.PublicKey != event.NewKey ||
		receipt.EventNonce != event.Nonce || receipt.GracePeriodExpiry != event.GracePeriodExpiry || receipt.RequestNonce != o.In.Request.Nonce {
		t.Errorf("the receipt does not tell the change: %+v", receipt)
	}
	if after["history"] != before["history"]+1 || after["outbox"] != before["outbox"]+1 {
		t.Errorf("a commit writes one change, and what is to be published: before %v, after %v", before, after)
	}
	service, err := in.store.ledger.Service(t.Context(), o.In.Request.Target)
	if err != nil {
		t.Fatal(err)
	}
	if service.Sequence != event.Sequence || service.Key != event.NewKey || service.Active() != (event.Event != events.ServiceRevocation) {
		t.Errorf("the service is not what the event says: %+v", service)
	}
	report, err := in.store.Admin().Check(t.Context(), nil, time.Unix(c.ProcessedAt, 0))
	if err != nil || len(report.Violations) > 0 {
		t.Errorf("check: %v %v", err, report.Violations)
	}
}

// contents are the numbers of rows, and what a service's row holds.
type contents map[string]int

func dump(t *testing.T, store *Store) contents {
	t.Helper()
	c := contents{}
	for _, table := range []string{"apps", "services", "history", "outbox"} {
		var n int
		if err := store.db.QueryRow(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		c[table] = n
	}
	err := eachRow(t.Context(), store, `SELECT target, status, sequence, recent_rotations, provider_receipt FROM services`, nil, func(row sqldb.Row) error {
		var target, status, recent, receipt string
		var sequence int
		err := row.Scan(&target, &status, &sequence, &recent, &receipt)
		c[fmt.Sprint(target, status, recent, receipt)] = sequence
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// loadState empties the database and writes a vector file's state into it.
func loadState(t *testing.T, store *Store, state vectors.State) {
	t.Helper()
	for _, table := range []string{"apps", "services", "history", "outbox"} {
		if _, err := store.db.Exec(t.Context(), "DELETE FROM "+table); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range state.Apps {
		app := App{mustApp(t, a.AppID), mustKey(t, a.MasterPublicKey)}
		if err := store.Admin().AddApp(t.Context(), app, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range state.Services {
		loadService(t, store, s)
	}
}

// loadService rebuilds the history that leads to a service's state: each key came by a rotation, the first by the
// binding, and a revoked service's last change is its revocation.
func loadService(t *testing.T, store *Store, s vectors.Service) {
	t.Helper()
	target := events.Target{App: mustApp(t, s.AppID)}
	var err error
	if target.Service, err = events.ParseServiceID(s.ServiceID); err != nil {
		t.Fatal(err)
	}
	g := &decision.Group{Target: target, Service: decision.Service{Status: events.ServiceStatus(s.Status), Sequence: s.Sequence}, Details: decision.NewDetails{BoundAt: new(int64(1))}}
	keys := map[int64]vectors.ServiceKey{}
	for _, key := range s.Keys {
		keys[key.FromSequence] = key
	}
	used := map[int64]vectors.UsedRequest{}
	for _, u := range s.UsedRequests {
		used[u.Sequence] = u
	}
	e := events.Invalidation{Target: target, Event: events.ServiceBinding, Timestamp: 1, GracePeriodExpiry: 1}
	w := rowWriter{t, store}
	var changes []events.Invalidation
	for sequence := int64(1); sequence <= s.Sequence; sequence++ {
		e.Sequence, e.OldKey, e.NewKey, e.Nonce = sequence, e.NewKey, events.PublicKey{}, events.NewNonce()
		if key, ok := keys[sequence]; ok {
			e.NewKey = mustKey(t, key.PublicKey)
		}
		if e.Event = events.ServiceBinding; !e.OldKey.IsZero() {
			e.Event = events.KeyRotation
			if old, ok := keys[sequence-1]; ok && old.ValidUntil != nil {
				e.GracePeriodExpiry = *old.ValidUntil
			}
		}
		if e.NewKey.IsZero() {
			e.Event, e.Timestamp = events.ServiceRevocation, e.GracePeriodExpiry
		}
		if s.LastChange != nil && sequence == s.Sequence {
			e.Timestamp = s.LastChange.CommittedAt
			e.GracePeriodExpiry = max(e.GracePeriodExpiry, e.Timestamp)
		}
		changes = append(changes, e)
	}
	g.Service.Key, g.Service.ChangedAt = e.NewKey, e.Timestamp
	if last := s.LastChange; last != nil {
		g.Service.Place, g.Service.SignedAt = decision.Place{Stream: last.Stream, Sequence: last.Sequence}, last.MasterTimestamp
	}
	w.service(g)
	for _, e := range changes {
		w.history(e, used[e.Sequence])
	}
}

// toldOf is a stream of receipts that has the refusals of a vector file's state.
func toldOf(t *testing.T, state vectors.State) func(context.Context, []events.Target) (map[events.Target]*told, error) {
	t.Helper()
	trust, err := events.NewTrust(state.Origin, testKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	all := map[events.Target]*told{}
	for _, s := range state.Services {
		target, err := events.ParseTarget(s.AppID + "." + s.ServiceID)
		if err != nil {
			t.Fatal(err)
		}
		one := &told{trust: trust}
		for _, name := range s.RefusedRequests {
			nonce, err := events.ParseNonce(name)
			if err != nil {
				t.Fatal(err)
			}
			receipt := events.Receipt{
				Origin: state.Origin, Target: target, Event: events.RequestRejected, RequestNonce: nonce, Nonce: events.NewNonce(),
				Reason: events.AlreadyBound,
			}
			one.list = append(one.list, &jetstream.RawStreamMsg{Subject: receipt.Subject(), Data: receipt.Sign(testKey)})
		}
		all[target] = one
	}
	return func(context.Context, []events.Target) (map[events.Target]*told, error) { return all, nil }
}

// rowWriter writes what no request wrote.
type rowWriter struct {
	t     *testing.T
	store *Store
}

func (w rowWriter) history(e events.Invalidation, used vectors.UsedRequest) {
	nonce, digest := events.NewNonce().String(), make([]byte, 32)
	if used.Nonce != "" {
		nonce = used.Nonce
		var err error
		if digest, err = hex.DecodeString(used.CanonicalDataSHA256); err != nil {
			w.t.Fatal(err)
		}
	}
	receipt := events.Receipt{
		Origin: testOrigin, Target: e.Target, Event: events.RequestCommitted, Nonce: events.NewNonce(), Timestamp: e.Timestamp,
		Sequence: e.Sequence, PublicKey: e.NewKey, GracePeriodExpiry: e.GracePeriodExpiry, EventNonce: e.Nonce,
	}
	w.exec(`INSERT INTO history (service, sequence, event, old_public_key, public_key, grace_period_expiry, committed_at, event_nonce,
		request_nonce, request_digest, receipt_nonce, receipt) SELECT id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 FROM services WHERE target = $1`,
		e.Target.String(), e.Sequence, string(e.Event), keyOrNull(e.OldKey), keyOrNull(e.NewKey), e.GracePeriodExpiry, e.Timestamp,
		e.Nonce.String(), nonce, digest, receipt.Nonce.String(), receipt.Sign(testKey))
}

func (w rowWriter) service(g *decision.Group) {
	one := &g.Service
	var recent strings.Builder
	for _, at := range one.Recent {
		fmt.Fprintf(&recent, "%d ", at)
	}
	row := []any{
		g.Target.String(), string(one.Status), one.Sequence, keyOrNull(one.Key), one.ChangedAt, recent.String(),
		one.Place.Stream, one.Place.Sequence, one.SignedAt, valueOf(g.Details.BoundAt), valueOf(g.Details.ServiceType),
		valueOf(g.Details.EndpointURL), valueOf(g.Details.ProviderReceipt),
	}
	w.exec(`INSERT INTO services (target, status, sequence, public_key, changed_at, recent_rotations,
		stream_created_at, stream_sequence, master_signed_at, bound_at, service_type, endpoint_url, provider_receipt)
		VALUES `+params(len(row)), row...)
}

func (w rowWriter) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.store.db.Exec(w.t.Context(), query, args...); err != nil {
		w.t.Fatal(err)
	}
}

const testOrigin = "omiappreg.org"

// testKey is the registry's in tests.
var testKey = events.GenerateSigningKey()

func openStore(t testing.TB, url string) *Store {
	t.Helper()
	store, err := OpenStore(t.Context(), url, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func newTestIntake(t testing.TB, store *Store, policy Policy, now func() time.Time) *intake {
	t.Helper()
	policy, err := policy.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return &intake{
		guard:  openGuard{},
		policy: policy, key: testKey, committed: func([]events.Invalidation) {}, store: store, log: testLog(t), metrics: newMetrics(prometheus.NewRegistry()), now: now, memory: newMemory(),
		publish: func(context.Context, outbox.Publication) error { return nil },
	}
}

// decideOne takes one message through load, decide and commit.
func decideOne(t *testing.T, in *intake, subject string, payload []byte, storedAt int64) *decision.Outcome {
	t.Helper()
	outcomes, err := decideAndCommit(t.Context(), in, []decision.Incoming{decision.NewIncoming(subject, payload, storedAt, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return &outcomes[0]
}

func readReceipt(t *testing.T, in *intake, o *decision.Outcome) events.Receipt {
	t.Helper()
	receipt, err := testTrust(t, in).Receipt(events.ReceiptSubject+o.In.Request.Target.String(), o.ReceiptBytes)
	if err != nil {
		t.Fatalf("the receipt can't be trusted: %v\n%s", err, o.ReceiptBytes)
	}
	return receipt
}

func testTrust(t *testing.T, in *intake) events.Trust {
	t.Helper()
	trust, err := events.NewTrust(in.policy.Origin, testKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func mustApp(t testing.TB, s string) events.AppID {
	t.Helper()
	app, err := events.ParseAppID(s)
	if err != nil {
		t.Fatal(err)
	}
	return app
}

func mustKey(t testing.TB, s string) events.PublicKey {
	t.Helper()
	key, err := events.ParsePublicKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keyOrNull(k events.PublicKey) any {
	if k.IsZero() {
		return nil
	}
	return k.Bytes()
}

func valueOf[T any](v *T) (value T) {
	if v != nil {
		value = *v
	}
	return value
}
