package registry

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// TestEnginesAgree: one random history, in the same batches, with the same races between replicas, and at the same times,
// has the same answers on every engine and leaves the same rows, but for what the registry draws by lot: the nonces of its
// messages, and so their signatures.
func TestEnginesAgree(t *testing.T) {
	t.Parallel()
	for _, engine := range testenv.Engines() {
		if engine == testenv.SQLite {
			continue // the others are held against it
		}
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			seen := map[string]int{}
			stores := []*Store{openStore(t, testenv.Database(t, testenv.SQLite)), openStore(t, testenv.Database(t, engine))}
			rapid.Check(t, func(rt *rapid.T) {
				h := drawHistory(rt, t, stores)
				var first, second account
				first.of(rt, t, h, stores[0])
				second.of(rt, t, h, stores[1])
				if diff := cmp.Diff(first, second, cmpopts.IgnoreUnexported(account{})); diff != "" {
					rt.Fatalf("- sqlite, + %s:\n%s", engine, diff)
				}
				for _, answer := range first.Answers {
					seen[strings.Fields(answer)[0]]++
				}
			})
			eachAnswer(t, seen)
		})
	}
}

// eachAnswer asks for every answer that there is, among so many that none is missing by chance.
func eachAnswer(t *testing.T, seen map[string]int) {
	t.Helper()
	total := 0
	for _, n := range seen {
		total += n
	}
	if total < 1000 {
		return // somebody asked for few checks
	}
	for _, answer := range []events.Reason{
		"committed", "duplicate",
		events.MalformedMessage, events.UnsupportedVersion, events.InvalidField, events.TargetMismatch,
		events.TimestampOutOfWindow, events.UnknownApp, events.UnknownService, events.AlreadyBound, events.OutOfOrder,
		events.TimestampOutOfOrder, events.InvalidSignature,
		events.SupersededKey, events.InvalidProof, events.WeakKey, events.KeyInUse, events.NonceReused, events.RateLimited,
	} {
		if seen[string(answer)] == 0 {
			t.Errorf("no request was answered with %s: %v", answer, seen)
		}
	}
	t.Logf("answers: %v", seen)
}

// drawnHistory is messages in batches.
type drawnHistory struct {
	policy  Policy
	app     App
	batches []drawnBatch
}

type drawnBatch struct {
	messages []sent
	storedAt []int64
	places   []decision.Place
	now      time.Time
	// late: the next batch is taken by another replica, after this one was decided and before it is committed.
	late bool
}

func drawHistory(rt *rapid.T, t *testing.T, stores []*Store) drawnHistory {
	t.Helper()
	for _, store := range stores {
		for _, table := range []string{"apps", "services", "history", "outbox"} {
			if _, err := store.db.Exec(t.Context(), "DELETE FROM "+table); err != nil {
				rt.Fatal(err)
			}
		}
	}
	d := newDeveloper(t, stores[0], "org.omiappreg.alice", "s-0")
	signed := int64(testNow)
	d.now = func() time.Time { // sometimes that of another signer
		signed += rapid.SampledFrom([]int64{0, 0, 0, 0, 1, 1, 1, -1}).Draw(rt, "signer's clock")
		return time.Unix(signed, 0)
	}
	h := drawnHistory{app: App{d.target.App, d.master.Public()}}
	h.policy = Policy{
		Origin:             testOrigin,
		RequireProof:       rapid.SampledFrom([]events.Proofs{events.ProofsNone, events.ProofsOwn, events.ProofsAll}).Draw(rt, "proof is required"),
		RotationsPerMinute: rapid.SampledFrom([]int{-1, 1, 2, 10}).Draw(rt, "rotations a minute"),
	}
	if err := stores[1].Admin().AddApp(t.Context(), h.app, 1); err != nil {
		rt.Fatal(err)
	}
	log, stored, now, at := traffic(rt, d), int64(testNow), int64(testNow), int64(100)
	for len(log) > 0 {
		n := rapid.IntRange(1, len(log)).Draw(rt, "batch")
		b := drawnBatch{messages: log[:n], late: rapid.Bool().Draw(rt, "late")}
		for range n {
			stored = min(stored+rapid.Int64Range(0, 9).Draw(rt, "pause"), testNow+250) // within the skew
			b.storedAt = append(b.storedAt, stored)
			at++
			late := rapid.SampledFrom([]int64{0, 0, 0, 0, 0, 0, 0, 5}).Draw(rt, "comes late")
			b.places = append(b.places, decision.Place{Stream: 1 + rapid.SampledFrom([]int64{0, 0, 0, 0, 0, 0, 0, 1}).Draw(rt, "stream"), Sequence: at - late})
		}
		now += rapid.Int64Range(-5, 40).Draw(rt, "clock")
		b.now = time.Unix(now, 0)
		h.batches, log = append(h.batches, b), log[n:]
	}
	return h
}

// account is what one engine made of a history.
type account struct {
	Answers []string            // in the order in which they are final
	Rows    map[string][]string // by table
	Reads   []string            // what lookups say
	Report  Report
	Relayed map[string][]string // what the outbox gives, by subject, in its order

	commits time.Duration
}

func (a *account) of(rt *rapid.T, t *testing.T, h drawnHistory, store *Store) {
	t.Helper()
	now := testNowTime()
	in := newTestIntake(t, store, h.policy, func() time.Time { return now })
	other := newTestIntake(t, store, h.policy, in.now) // another replica, with a memory of its own
	var late *decision.Batch
	for _, b := range h.batches {
		now = b.now
		var todo []decision.Incoming
		for i, m := range b.messages {
			one := decision.NewIncoming(m.subject, m.payload, b.storedAt[i], i)
			one.Place = b.places[i]
			todo = append(todo, one)
		}
		if b.late && late == nil {
			late = a.decided(rt, t, other, todo)
			continue
		}
		a.settle(rt, t, in, a.decided(rt, t, in, todo))
		if late != nil {
			a.settle(rt, t, other, late)
			late = nil
		}
	}
	if late != nil {
		a.settle(rt, t, other, late)
	}
	a.look(rt, t, store, now)
}

func testNowTime() time.Time { return time.Unix(testNow, 0) }

// decided takes requests up to the commit.
func (a *account) decided(rt *rapid.T, t *testing.T, in *intake, todo []decision.Incoming) *decision.Batch {
	t.Helper()
	b, err := decideBatch(t.Context(), in, todo)
	if err != nil {
		rt.Fatal(err)
	}
	b.SignRefusals()
	return b
}

// settle commits, and decides again what was lost to another replica.
func (a *account) settle(rt *rapid.T, t *testing.T, in *intake, b *decision.Batch) {
	t.Helper()
	for {
		a.commits += time.Millisecond // no two at the same time, which would leave the order in the outbox open
		losses, err := in.store.ledger.Commit(t.Context(), b.Groups, in.now().Add(a.commits))
		if err != nil {
			rt.Fatal(err)
		}
		in.memory.learn(in.now(), b, losses, nil)
		lost := losses.Services
		for _, g := range b.Groups {
			for i := range g.Outcomes {
				if !lost[g.Target] {
					a.Answers = append(a.Answers, a.answer(rt, t, in, &g.Outcomes[i]))
				}
			}
		}
		if len(lost) == 0 {
			return
		}
		names := slices.Collect(func(yield func(string) bool) {
			for target := range lost {
				if !yield(target.String()) {
					return
				}
			}
		})
		slices.Sort(names)
		a.Answers = append(a.Answers, fmt.Sprint("lost ", names))
		b = a.decided(rt, t, in, b.RequestsOf(lost))
	}
}

// answer tells an outcome, and the receipt as it is sent, without nonces.
func (a *account) answer(rt *rapid.T, t *testing.T, in *intake, o *decision.Outcome) string {
	t.Helper()
	verdict := map[decision.Verdict]string{decision.Committed: "committed", decision.Duplicate: "duplicate", decision.Refused: string(o.Reason)}[o.Verdict]
	return fmt.Sprintf("%s %s %s", verdict, o.In.Request.Kind, message(rt, testTrust(t, in), o.Messages()[len(o.Messages())-1]))
}

// message tells one of the registry's messages without its nonces.
func message(rt *rapid.T, trust events.Trust, m decision.Message) string {
	if strings.HasPrefix(m.Subject, events.ReceiptSubject) {
		receipt, err := trust.Receipt(m.Subject, m.Payload)
		if err != nil {
			rt.Fatal(err)
		}
		receipt.Nonce, receipt.EventNonce = events.Nonce{}, events.Nonce{}
		return fmt.Sprintf("%+v", receipt)
	}
	event, err := trust.Invalidation(m.Subject, m.Payload)
	if err != nil {
		rt.Fatal(err)
	}
	event.Nonce = events.Nonce{}
	return fmt.Sprintf("%+v", event)
}

// look reads all that there is, by the registry's own statements and around them.
func (a *account) look(rt *rapid.T, t *testing.T, store *Store, now time.Time) {
	t.Helper()
	ctx := t.Context()
	trust, err := events.NewTrust(testOrigin, testKey.Public())
	if err != nil {
		rt.Fatal(err)
	}
	if a.Report, err = store.Admin().Check(ctx, &trust, testNowTime()); err != nil || len(a.Report.Violations) > 0 {
		rt.Fatalf("check: %v %v", err, a.Report.Violations)
	}
	a.Rows = map[string][]string{}
	for table, query := range map[string]string{
		"apps": "SELECT * FROM apps ORDER BY app_id", "services": "SELECT * FROM services ORDER BY target",
		"history": "SELECT target, history.* FROM history JOIN services ON id = service ORDER BY target, history.sequence",
	} {
		a.Rows[table] = rowsOf(rt, t, store, query)
	}
	// A commit writes its services in the order of their ids, which are by lot: only the order within
	// a service is the same on every engine.
	a.Rows["outbox"] = rowsOf(rt, t, store, `SELECT target, outbox.sequence, position - position % 1000000 AS commit_time, lease_until
		FROM outbox JOIN services ON id = service ORDER BY target, position`)
	for _, name := range []string{"s-0", "s-1", "s-2"} {
		target, err := events.ParseTarget("org.omiappreg.alice." + name)
		if err != nil {
			rt.Fatal(err)
		}
		history, err := store.history(ctx, target)
		if err != nil {
			rt.Fatal(err)
		}
		for i := range history {
			history[i].Nonce = events.Nonce{}
		}
		var grace []events.GraceKey
		one, err := store.ledger.Service(ctx, target)
		if err == nil {
			if grace, err = store.ledger.InGrace(ctx, &one.Service, now.Unix(), 300); err != nil {
				rt.Fatal(err)
			}
			one.ID = 0 // by lot
		}
		a.Reads = append(a.Reads, fmt.Sprintf("%+v %+v %+v %v", history, grace, one, err))
	}
	a.Relayed = map[string][]string{}
	for {
		claimed, err := store.outbox.Claim(ctx, 20, now.Add(time.Hour))
		if err != nil {
			rt.Fatal(err)
		}
		if len(claimed) == 0 {
			return
		}
		for _, m := range claimed {
			a.Relayed[m.Subject] = append(a.Relayed[m.Subject], message(rt, trust, m))
		}
		if _, err := store.outbox.Delete(ctx, claimed, ledger.Position{}, 0); err != nil {
			rt.Fatal(err)
		}
	}
}

// byLot are the columns that hold what was drawn by lot.
func byLot(column string) bool {
	return slices.Contains([]string{"event_nonce", "receipt_nonce", "receipt", "id", "service"}, column)
}

func rowsOf(rt *rapid.T, t *testing.T, store *Store, query string) (list []string) {
	t.Helper()
	rows, err := store.db.Reader().QueryContext(t.Context(), query)
	if err != nil {
		rt.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	for err == nil && rows.Next() {
		row := map[string]sql.NullString{}
		values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		err = rows.Scan(into...)
		for i, column := range columns {
			if !byLot(column) {
				row[column] = values[i]
			}
		}
		var line []string
		for _, column := range slices.Sorted(maps.Keys(row)) {
			line = append(line, fmt.Sprintf("%s=%q,%t", column, row[column].String, row[column].Valid))
		}
		list = append(list, strings.Join(line, " "))
	}
	if err := errors.Join(err, rows.Err()); err != nil {
		rt.Fatal(err)
	}
	return list
}

// TestIDs: new services of one batch get ids side by side. CockroachDB's are of no sequence: there, that would be one row of the whole
// cluster, written for each of them.
func TestIDs(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 3}, testNowTime)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		var batch []request
		for i := range 3 {
			batch = append(batch, d.another(fmt.Sprintf("s-%d", i)).bind())
		}
		for i, o := range decideAll(t, in, batch...) {
			if o.Verdict != decision.Committed {
				t.Errorf("request %d: %v %s", i, o.Verdict, o.Reason)
			}
		}
		var first, last int64
		if err := store.db.QueryRow(t.Context(), "SELECT MIN(id), MAX(id) FROM services").Scan(&first, &last); err != nil {
			t.Fatal(err)
		}
		if last != first+2 || (first > 1<<32) != (store.db.Engine() == sqldb.Cockroach) {
			t.Errorf("ids from %d to %d", first, last)
		}
	})
}
