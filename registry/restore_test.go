package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

// backup is a consistent copy of a registry's database.
type backup map[string][][]any

var backedUp = []string{"apps", "services", "history", "outbox", "stream_positions"}

func takeBackup(t *testing.T, store *Store) backup {
	t.Helper()
	b := backup{}
	err := store.db.InTx(t.Context(), func(tx *sql.Tx) error {
		for _, table := range backedUp {
			var err error
			if b[table], err = copyTable(t.Context(), tx, table); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func copyTable(ctx context.Context, tx *sql.Tx, table string) (content [][]any, err error) {
	rows, err := tx.QueryContext(ctx, "SELECT * FROM "+table)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	for err == nil && rows.Next() {
		row, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		err = rows.Scan(into...)
		content = append(content, row)
	}
	return content, errors.Join(err, rows.Err())
}

// params returns ($1, $2, …).
func params(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = "$" + strconv.Itoa(i+1)
	}
	return "(" + strings.Join(list, ", ") + ")"
}

func (b backup) restore(t *testing.T, store *Store) {
	t.Helper()
	err := store.db.InTx(context.WithoutCancel(t.Context()), func(tx *sql.Tx) error {
		for _, table := range backedUp {
			if _, err := tx.ExecContext(t.Context(), "DELETE FROM "+table); err != nil {
				return err
			}
			for _, row := range b[table] {
				if _, err := tx.ExecContext(t.Context(), "INSERT INTO "+table+" VALUES "+params(len(row)), row...); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// settled waits until nothing is in the outbox, so that the position was moved to the last event.
func (w *world) settled() {
	w.t.Helper()
	testenv.Eventually(w.t, patience, "the position is the stream's end", func() error {
		p, _, err := w.store.position(w.t.Context())
		if err != nil {
			return err
		}
		stream, err := invalidations(w.t.Context(), w.js)
		if err != nil {
			return err
		}
		if last := stream.CachedInfo().State.LastSeq; p.place != last {
			return fmt.Errorf("%d, the stream ends at %d", p.place, last)
		}
		return nil
	})
	w.clean()
}

func (w *world) commit(r request) events.Receipt {
	w.t.Helper()
	w.publish(r)
	receipt := w.answer(r)
	if receipt.Event != events.RequestCommitted {
		w.t.Fatalf("refused: %s %s", receipt.Reason, receipt.Detail)
	}
	return receipt
}

// boundWorld is a registry that runs, with a service that is bound, and of which everybody has heard.
func boundWorld(t *testing.T, url string) (w *world, d *developer, stop func()) {
	t.Helper()
	w = newWorld(t, url)
	stop = w.run()
	d = newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	w.commit(d.bind())
	w.settled()
	return w, d, stop
}

// status is what a lookup over NATS is answered with.
func (w *world) status(subject string) string {
	w.t.Helper()
	reply, err := w.conn.Request(subject, nil, patience)
	if errors.Is(err, nats.ErrNoResponders) {
		return "nobody" // the registry does not serve yet
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return reply.Header.Get("Nats-Service-Error-Code")
}

func (w *world) held(d *developer) {
	w.t.Helper()
	testenv.Eventually(w.t, patience, "the service is held", func() error {
		for _, subject := range []string{events.LookupServiceSubject, events.LookupHistorySubject} {
			if code := w.status(subject + d.target.String()); code != "503" {
				return fmt.Errorf("%s is answered with %q", subject, code)
			}
		}
		return nil
	})
}

// oneSequenceOnce checks that no sequence of a service is in the stream with two events.
func (w *world) oneSequenceOnce(targets ...events.Target) {
	w.t.Helper()
	for _, t := range targets {
		nonces := map[int64]events.Nonce{}
		for _, e := range w.events(t) {
			if first, ok := nonces[e.Sequence]; ok && first != e.Nonce {
				w.t.Errorf("%s: sequence %d was issued twice", t, e.Sequence)
			}
			nonces[e.Sequence] = e.Nonce
		}
	}
}

// TestRestoredFromABackup: a registry that starts on an older backup holds the services whose changes it lacks, serves
// the others, and serves all again once recover has brought the changes back from the streams.
func TestRestoredFromABackup(t *testing.T) {
	t.Parallel()
	for name, mark := range map[string]bool{"with its position": true, "without any": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testenv.EachEngine(t, func(t *testing.T, url string) { restoredFromABackup(t, url, mark) })
		})
	}
}

func restoredFromABackup(t *testing.T, url string, mark bool) {
	w := newWorld(t, url)
	stop := w.run()
	behind := newDeveloper(t, w.store, "org.omiappreg.alice", "behind")
	other, unborn := behind.another("other"), behind.another("unborn")
	w.commit(behind.bind())
	w.commit(other.bind())
	w.commit(behind.rotate())
	w.settled()
	old := takeBackup(t, w.store)
	w.commit(behind.rotate())
	last := behind.rotate()
	first := w.commit(last)
	w.commit(unborn.bind())
	w.settled()
	stop()

	if !mark {
		old["stream_positions"] = nil // as of a version that had none
	}
	old.restore(t, w.store)
	stop = w.run()
	w.held(behind)
	w.held(unborn)
	if code := w.status(events.LookupServiceSubject + other.target.String()); code != "" {
		t.Errorf("a service that lacks nothing is answered with %q", code)
	}
	lostKey := unborn.current
	waiting, late := behind.rotate(), unborn.rotate()
	w.publish(waiting)
	w.publish(late)
	thief := behind.another("thief")
	stolen := thief.sign(events.Binding, lostKey, thief.master) // a key that a lost change registered
	w.publish(stolen)
	if receipt := w.answer(stolen); receipt.Reason != events.KeyInUse {
		t.Errorf("a key that the database forgot is registered for another service: %+v", receipt)
	}
	for range 3 {
		w.commit(other.rotate())
	}
	if n := len(w.receipts(behind.target)); n != 4 {
		t.Errorf("a held service has %d receipts, want those of its 4 changes", n)
	}
	stop()
	stop = w.run() // what the others did meanwhile must not hide what is lacking
	w.held(behind)
	w.held(unborn)

	w.recover(3, 2)
	if receipt := w.answer(waiting); receipt.Sequence != 5 || receipt.Event != events.RequestCommitted {
		t.Errorf("the waiting request: %+v", receipt)
	}
	if receipt := w.answer(late); receipt.Sequence != 2 || receipt.Event != events.RequestCommitted {
		t.Errorf("the waiting request of the other: %+v", receipt)
	}
	w.commit(behind.rotate())
	if code := w.status(events.LookupServiceSubject + behind.target.String()); code != "" {
		t.Errorf("the service is answered with %q", code)
	}
	w.oneSequenceOnce(behind.target, other.target, unborn.target)
	w.settled()

	// The request that the backup had lost is known again by its nonce and key: its first receipt stands.
	in := newTestIntake(t, w.store, Policy{Origin: testOrigin}, time.Now)
	o := decideOne(t, in, last.draft.Subject(), last.payload, time.Now().Unix())
	if o.verdict != duplicate || o.receiptNonce != first.Nonce {
		t.Errorf("the same bytes again: %+v", o)
	}
	stop()
}

// recover brings back so many changes of so many services.
func (w *world) recover(changes, services int) {
	w.t.Helper()
	report, err := w.store.Recover(w.t.Context(), w.recovery())
	if err != nil || report.Changes != changes || report.Services != services || !report.Complete() || report.WithoutReceipt > 0 {
		w.t.Fatalf("recovered %+v: %v", report, err)
	}
}

func (w *world) recovery() Recovery {
	return Recovery{JetStream: w.js, Trust: w.trust, Key: testKey, Log: testLog(w.t)}
}

// TestRestoredUnderARunningRegistry: the database becomes an older one while registries are running.
func TestRestoredUnderARunningRegistry(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.run()
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "behind")
		other := d.another("other")
		w.commit(d.bind())
		w.commit(other.bind())
		w.settled()
		old := takeBackup(t, w.store)
		w.commit(d.rotate())
		w.commit(d.rotate())
		w.settled()
		w.run() // a second replica, which has seen all of it: one that has not looked for a second could not tell

		old.restore(t, w.store)
		waiting := d.rotate()
		w.publish(waiting)
		w.commit(other.rotate())
		w.commit(other.rotate())
		w.held(d)
		w.recover(2, 1)
		if receipt := w.answer(waiting); receipt.Sequence != 4 || receipt.Event != events.RequestCommitted {
			t.Errorf("the waiting request: %+v", receipt)
		}
		w.oneSequenceOnce(d.target, other.target)
		w.settled()
	})
}

// TestFailOver: a standby that lacks the last commits takes over, and the position that it has is the one that a replica saw
// last: that it was away is reason enough to compare.
func TestFailOver(t *testing.T) {
	t.Parallel()
	direct := testenv.Database(t, testenv.Postgres)
	w, d, stop := boundWorld(t, direct)

	through, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := testenv.NewProxy(t, through.Host)
	through.Host = proxy.Addr()
	f, err := newFence(Config{
		Policy: Policy{Origin: testOrigin}, Key: testKey, Store: openStore(t, through.String()), Log: testLog(t),
		Metrics: prometheus.NewRegistry(),
	}, w.js)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.compare(t.Context()); err != nil {
		t.Fatal(err)
	}
	standby := takeBackup(t, w.store)
	w.commit(d.rotate())
	w.settled()
	stop()

	proxy.Cut()
	if err := f.look(t.Context()); err == nil {
		t.Fatal("a database that is away was looked at")
	}
	standby.restore(t, w.store)
	proxy.Restore()
	if err := f.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.answers(d.target, 1); !errors.Is(err, ErrBehind) {
		t.Errorf("the service is served: %v", err)
	}
}

// TestIssuedTwice: an older version has issued a sequence twice. That can't be undone, and the service is not held for it,
// nor for what followed upon the other event; both are told.
func TestIssuedTwice(t *testing.T) {
	t.Parallel()
	w, d, stop := boundWorld(t, testenv.Database(t, testenv.SQLite))
	old := takeBackup(t, w.store)
	old["stream_positions"] = nil
	w.commit(d.rotate())
	w.commit(d.rotate())
	w.settled()
	stop()

	old.restore(t, w.store)
	in := newTestIntake(t, w.store, Policy{Origin: testOrigin}, time.Now)
	r := d.reset()
	decideOne(t, in, r.draft.Subject(), r.payload, time.Now().Unix()) // sequence 2 again
	report, err := w.store.Recover(t.Context(), w.recovery())
	if err != nil || report.Complete() || len(report.IssuedTwice) != 1 || len(report.Conflicts) != 1 || report.Changes != 0 {
		t.Errorf("recovered %+v: %v", report, err)
	}
	w.run()
	w.commit(d.rotate())
}

// TestKeyOfAServiceIssuedTwice: nobody is held then, but a key that was announced and that the history lacks stays its service's, also
// where the registry decides on what it remembers.
func TestKeyOfAServiceIssuedTwice(t *testing.T) {
	t.Parallel()
	w, d, stop := boundWorld(t, testenv.Database(t, testenv.SQLite))
	other := d.another("other")
	w.commit(other.bind())
	w.settled()
	old := takeBackup(t, w.store)
	old["stream_positions"] = nil
	w.commit(d.rotate())
	w.commit(d.rotate())
	announced := d.current
	w.settled()
	stop()

	old.restore(t, w.store)
	in := newTestIntake(t, w.store, Policy{Origin: testOrigin}, time.Now)
	decideAll(t, in, d.reset(), other.rotate()) // sequence 2 again
	f, err := newFence(Config{
		Policy: Policy{Origin: testOrigin}, Key: testKey, Store: w.store, Log: testLog(t), Metrics: prometheus.NewRegistry(),
	}, w.js)
	if err == nil {
		err = f.compare(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.answers(d.target, 2); err != nil {
		t.Fatal(err)
	}
	in.fence = f
	for range 2 { // nothing is remembered at first
		if o := decideAll(t, in, other.rotate())[0]; o.verdict != committed {
			t.Fatalf("refused: %s %s", o.reason, o.detail)
		}
	}
	if o := decideAll(t, in, other.sign(events.Rotation, announced, other.current))[0]; o.reason != events.KeyInUse {
		t.Errorf("another service has the key that was announced: %v %q", o.verdict, o.reason)
	}
}

// TestRecoverWithAGap: what the stream does not keep any more can't be recovered, and is told; the service stays held.
func TestRecoverWithAGap(t *testing.T) {
	t.Parallel()
	w, d, stop := boundWorld(t, testenv.Database(t, testenv.SQLite))
	old := takeBackup(t, w.store)
	for range 66 {
		w.publish(d.rotate())
	}
	last := d.rotate()
	w.commit(last)
	w.settled()
	stop()
	old.restore(t, w.store)
	w.run()
	w.held(d)
	report, err := w.store.Recover(t.Context(), w.recovery())
	if err != nil || report.Complete() || report.Changes != 0 || len(report.Gaps) != 1 {
		t.Fatalf("recovered %+v: %v", report, err)
	}
	if gap := report.Gaps[0]; gap.Target != d.target.String() || gap.Has != 1 || gap.Next != 5 {
		t.Errorf("the gap: %+v", gap)
	}
	w.held(d)
}

// TestRecoverWithoutReceipts: receipts are kept for 7 days only. What they said gets a stand-in, the check stays clean, and
// the same request again commits nothing.
func TestRecoverWithoutReceipts(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w, d, stop := boundWorld(t, url)
		gone := d.another("gone")
		old := takeBackup(t, w.store)
		r := d.rotate()
		w.commit(r)
		w.commit(d.reset())
		w.commit(gone.bind())
		w.commit(gone.revoke())
		w.settled()
		stop()
		old.restore(t, w.store)
		stream, err := w.js.Stream(t.Context(), events.ReceiptStream)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		dry := w.recovery()
		dry.DryRun = true
		for _, how := range []Recovery{dry, w.recovery()} {
			report, err := w.store.Recover(t.Context(), how)
			if err != nil || report.Changes != 4 || report.Services != 2 || report.WithoutReceipt != 4 || !report.Complete() {
				t.Fatalf("dry run %t: recovered %+v: %v", how.DryRun, report, err)
			}
		}
		again, err := w.store.Recover(t.Context(), w.recovery())
		if err != nil || again.Changes != 0 {
			t.Errorf("a second time recovered %+v: %v", again, err)
		}
		w.clean()
		in := newTestIntake(t, w.store, Policy{Origin: testOrigin}, time.Now)
		if o := decideOne(t, in, r.draft.Subject(), r.payload, time.Now().Unix()); o.verdict != rejected {
			t.Errorf("the same bytes again: %+v", o)
		}
		w.run()
		w.commit(d.rotate())
		w.commit(gone.bind())
		w.settled()
	})
}

// TestLostRegistryDatabase: nothing is left of the database, and everything but the apps comes back from the streams.
func TestLostRegistryDatabase(t *testing.T) {
	t.Parallel()
	w, d, stop := boundWorld(t, testenv.Database(t, testenv.SQLite))
	w.commit(d.rotate())
	w.settled()
	stop()
	w.store = openStore(t, testenv.Database(t, testenv.SQLite))
	w.run()
	w.held(d)
	report, err := w.store.Recover(t.Context(), w.recovery())
	if err != nil || !report.Complete() || report.Changes != 2 || len(report.UnknownApps) != 1 || report.UnknownApps[0] != d.target.App {
		t.Fatalf("recovered %+v: %v", report, err)
	}
	w.commit(d.rotate())
	w.settled()
	w.checked()
}

// TestStreamWithoutItsEnd: a stream that lost its last messages is compared as a whole, and the position is its end again.
func TestStreamWithoutItsEnd(t *testing.T) {
	t.Parallel()
	w, d, stop := boundWorld(t, testenv.Database(t, testenv.SQLite))
	stop()
	if _, err := w.store.db.Writer().ExecContext(t.Context(), "UPDATE stream_positions SET position = 1000"); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.settled()
	w.commit(d.rotate())
	w.settled()
}

// TestOutboxOfAnOlderDatabase: rows of the outbox are gone. Where their changes are in the history, somebody else has
// published them; where they are not, the database is not the one that they were committed to.
func TestOutboxOfAnOlderDatabase(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		before := takeBackup(t, store)
		decideAll(t, in, d.bind())
		messages, err := store.claimOutbox(t.Context(), 10, time.Now().Add(time.Hour))
		if err != nil || len(messages) != 2 {
			t.Fatalf("%d messages: %v", len(messages), err)
		}
		for range 2 { // the second time they are gone
			if _, err := store.deleteOutbox(t.Context(), messages, position{}, 0); err != nil {
				t.Errorf("published twice: %v", err)
			}
		}
		before.restore(t, store)
		if _, err := store.deleteOutbox(t.Context(), messages, position{}, 0); !errors.Is(err, errOlder) {
			t.Errorf("an older database: %v", err)
		}
	})
}

// TestCheckAgainstTheStream: the check finds what the stream has and the database has not, and the other way round.
func TestCheckAgainstTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	stop := w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	other := d.another("other")
	w.commit(d.bind())
	w.commit(other.bind())
	for range 70 {
		w.publish(d.rotate())
	}
	w.commit(d.rotate())
	w.settled()
	stop()
	w.checked()

	exec := func(query string, args ...any) {
		if _, err := w.store.db.Writer().ExecContext(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
	}
	// Of what was committed just now the check says nothing.
	exec("UPDATE history SET committed_at = committed_at - 3600, grace_period_expiry = grace_period_expiry - 3600")
	exec("UPDATE services SET changed_at = changed_at - 3600")
	full := takeBackup(t, w.store)
	exec("DELETE FROM history WHERE service = (SELECT id FROM services WHERE target = $1) AND sequence = 72", d.target.String())
	exec("UPDATE services SET sequence = 71 WHERE target = $1", d.target.String())
	exec("UPDATE history SET event_nonce = 'another-nonce' WHERE service = (SELECT id FROM services WHERE target = $1)", other.target.String())
	w.checked("the database lacks sequence 72", "sequence 1 is in the stream with another event",
		"the stream lacks the event of sequence 1", "present state is not what sequence 71 brought")

	full.restore(t, w.store)
	exec(`INSERT INTO history SELECT service, 2, 'KEY_ROTATION', public_key, $1, committed_at, committed_at,
		'unpublished', 'unpublished', request_digest, 'unpublished', receipt FROM history
		WHERE service = (SELECT id FROM services WHERE target = $2)`,
		events.GenerateSigningKey().Public().Bytes(), other.target.String())
	exec("UPDATE services SET sequence = 2, public_key = (SELECT public_key FROM history WHERE event_nonce = 'unpublished') WHERE target = $1", other.target.String())
	w.checked("the stream lacks the event of sequence 2")
}

// checked runs the check with the stream, which must find exactly these violations.
func (w *world) checked(want ...string) {
	w.t.Helper()
	report, err := w.store.CheckWithStream(w.t.Context(), w.js, w.trust, time.Now(), testLog(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	var found []string
	for _, v := range report.Violations {
		if strings.Contains(v.What, "receipt of sequence") {
			continue // the tests above change rows, not receipts
		}
		found = append(found, v.What)
	}
	for _, text := range want {
		ok := false
		for _, v := range found {
			ok = ok || strings.Contains(v, text)
		}
		if !ok {
			w.t.Errorf("not found: %s", text)
		}
	}
	if len(found) != len(want) {
		w.t.Errorf("violations: %q", found)
	}
}
