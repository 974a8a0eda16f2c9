package registry

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

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
	if o.Verdict != decision.Duplicate || o.ReceiptNonce != first.Nonce {
		t.Errorf("the same bytes again: %+v", o)
	}
	stop()
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
// last: that it was away is reason enough to compare. So it is where no question was asked meanwhile, and database/sql has
// replaced the dead sessions without an error.
func TestFailOver(t *testing.T) {
	t.Parallel()
	for name, asked := range map[string]bool{"asked meanwhile": true, "unseen": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := testenv.Database(t, testenv.Postgres)
			w, d, stop := boundWorld(t, direct)

			through, err := url.Parse(direct)
			if err != nil {
				t.Fatal(err)
			}
			proxy := testenv.NewProxy(t, through.Host)
			through.Host = proxy.Addr()
			store := openStore(t, through.String())
			f := newGuard(t, store, w.js)
			if err := f.Compare(t.Context()); err != nil {
				t.Fatal(err)
			}
			standby := takeBackup(t, w.store)
			w.commit(d.rotate())
			w.settled()
			stop()

			if !asked {
				nextIsTried(t, store)
			}
			proxy.Cut()
			if asked {
				if err := f.Look(t.Context()); err == nil {
					t.Fatal("a database that is away was looked at")
				}
			}
			standby.restore(t, w.store)
			proxy.Restore()
			testenv.Eventually(t, patience, "the service is not served", func() error {
				if err := f.Look(t.Context()); err != nil {
					return err
				}
				if err := f.Answers(d.target, 1); !errors.Is(err, ErrBehind) {
					return fmt.Errorf("it is: %w", err)
				}
				return nil
			})
		})
	}
}

// nextIsTried has the next session that is used be one that the driver tries before, as it does with those that were idle for long.
func nextIsTried(t *testing.T, s *Store) {
	t.Helper()
	pool := s.db.Writer()
	conns := make([]*sql.Conn, pool.Stats().Idle+1) // the last one is new
	for i := range conns {
		var err error
		if conns[i], err = pool.Conn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range conns {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
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
	report, err := w.store.Admin().Recover(t.Context(), w.recovery())
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
	f := newGuard(t, w.store, w.js)
	if err := f.Compare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Answers(d.target, 2); err != nil {
		t.Fatal(err)
	}
	in.guard = f
	for range 2 { // nothing is remembered at first
		if o := decideAll(t, in, other.rotate())[0]; o.Verdict != decision.Committed {
			t.Fatalf("refused: %s %s", o.Reason, o.Detail)
		}
	}
	if o := decideAll(t, in, other.sign(events.Rotation, announced, other.current))[0]; o.Reason != events.KeyInUse {
		t.Errorf("another service has the key that was announced: %v %q", o.Verdict, o.Reason)
	}
}

// TestStreamWithoutItsEnd: a stream that lost its last messages is compared as a whole, and the position is its end again.
func TestStreamWithoutItsEnd(t *testing.T) {
	t.Parallel()
	w, d, stop := boundWorld(t, testenv.Database(t, testenv.SQLite))
	stop()
	if _, err := w.store.db.Exec(t.Context(), "UPDATE stream_positions SET position = 1000"); err != nil {
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
		messages, err := store.outbox.Claim(t.Context(), 10, time.Now().Add(time.Hour))
		if err != nil || len(messages) != 2 {
			t.Fatalf("%d messages: %v", len(messages), err)
		}
		for range 2 { // the second time they are gone
			if _, err := store.outbox.Delete(t.Context(), messages, ledger.Position{}, 0); err != nil {
				t.Errorf("published twice: %v", err)
			}
		}
		before.restore(t, store)
		if _, err := store.outbox.Delete(t.Context(), messages, ledger.Position{}, 0); !errors.Is(err, ledger.ErrOlder) {
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
		if _, err := w.store.db.Exec(t.Context(), query, args...); err != nil {
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
	exec(`INSERT INTO history (service, sequence, event, old_public_key, public_key, grace_period_expiry, committed_at, event_nonce,
		request_nonce, request_digest, receipt_nonce, receipt) SELECT service, 2, 'KEY_ROTATION', public_key, $1, committed_at, committed_at,
		'unpublished', 'unpublished', request_digest, 'unpublished', receipt FROM history
		WHERE service = (SELECT id FROM services WHERE target = $2)`,
		events.GenerateSigningKey().Public().Bytes(), other.target.String())
	exec("UPDATE services SET sequence = 2, public_key = (SELECT public_key FROM history WHERE event_nonce = 'unpublished') WHERE target = $1", other.target.String())
	w.checked("the stream lacks the event of sequence 2")
}
