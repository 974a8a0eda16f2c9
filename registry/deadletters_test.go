package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

// poison makes the database refuse every change of a service, until the returned function ends that.
func (w *world) poison(t events.Target) (mend func()) {
	w.t.Helper()
	// CockroachDB looks at a constraint only where one of its columns is set, and target never is.
	statement := fmt.Sprintf("ALTER TABLE services ADD CONSTRAINT poison CHECK (target <> '%s' OR sequence < 0) NOT VALID", t)
	end := "ALTER TABLE services DROP CONSTRAINT poison"
	if w.store.db.Engine() == sqldb.SQLite {
		statement = fmt.Sprintf(`CREATE TRIGGER poison BEFORE UPDATE ON services WHEN NEW.target = '%s'
			BEGIN SELECT RAISE(ABORT, 'poison'); END`, t)
		end = "DROP TRIGGER poison"
	}
	run := func(statement string) {
		if _, err := w.store.db.Exec(w.t.Context(), statement); err != nil {
			w.t.Fatal(err)
		}
	}
	run(statement)
	return func() { run(end) }
}

// waiting waits until there are so many dead letters that nobody has asked to retry.
func (w *world) waiting(n int) []DeadLetter {
	w.t.Helper()
	var list []DeadLetter
	testenv.Eventually(w.t, patience, fmt.Sprintf("%d dead letters", n), func() (err error) {
		list, err = w.store.Admin().DeadLetters(w.t.Context(), 10)
		if err != nil || len(list) != n {
			return fmt.Errorf("there are %+v: %w", list, err)
		}
		for _, l := range list {
			if l.Retrying {
				return fmt.Errorf("%s is not retried yet", l.ID)
			}
		}
		return nil
	})
	return list
}

// TestPoisonedService: the database refuses whatever is done to one service. Its request is set aside and shown, all others
// go on, and it is answered once the cause is mended and a retry asked for.
func TestPoisonedService(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.run()
		victim := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
		other := newDeveloper(t, w.store, "org.omiappreg.bob", "shop")
		for _, d := range []*developer{victim, other} {
			bind := d.bind()
			w.publish(bind)
			w.answer(bind)
		}
		mend := w.poison(victim.target)
		before := *victim
		poisoned := victim.rotate()
		w.publish(poisoned)
		testenv.Eventually(t, patience, "the request is set aside", func() error {
			r := other.rotate()
			w.publish(r)
			if receipt := w.answer(r); receipt.Event != events.RequestCommitted {
				t.Fatalf("a request of another service: %+v", receipt)
			}
			if n, err := w.store.letters.Count(t.Context()); err != nil || n != 1 {
				return fmt.Errorf("%d dead letters: %w", n, err)
			}
			return nil
		})
		l := w.waiting(1)[0]
		if l.Subject != poisoned.draft.Subject() || l.Reason != consume.Fails || l.Tries < 5 || l.StreamSequence == 0 || l.Detail == "" {
			t.Errorf("set aside is %+v", l)
		}
		if report, err := w.store.Admin().Check(t.Context(), &w.trust, time.Now()); err != nil || report.DeadLetters != 1 || len(report.Violations) > 0 {
			t.Errorf("check: %+v, %v", report, err)
		}

		// A retry before it is mended fails again.
		if err := w.store.Admin().RetryDeadLetters(t.Context(), []string{l.ID}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if again := w.waiting(1)[0]; again.Tries != l.Tries+1 || again.ID != l.ID {
			t.Errorf("after a vain retry: %+v", again)
		}

		mend()
		ids, err := w.store.Admin().RetryAllDeadLetters(t.Context(), time.Now())
		if err != nil || len(ids) != 1 || ids[0] != l.ID {
			t.Fatalf("retry all: %v, %v", ids, err)
		}
		if receipt := w.answer(poisoned); receipt.Event != events.RequestCommitted || receipt.Sequence != 2 {
			t.Errorf("after the retry: %+v", receipt)
		}
		w.waiting(0)
		before.current = victim.current
		next := before.rotate()
		w.publish(next)
		if receipt := w.answer(next); receipt.Event != events.RequestCommitted || receipt.Sequence != 3 {
			t.Errorf("the next rotation: %+v", receipt)
		}
		w.clean()
	})
}

// letterOf returns a request as a dead letter that JetStream stored then.
func letterOf(r request, stored time.Time, why consume.Fault) *queue.Message {
	letter := ledger.DeadLetter{Subject: r.draft.Subject(), Payload: r.payload, StoredAt: stored.Unix()}
	return (&letterMessage{letter: letter, settled: make(chan bool, 1)}).message()
}

var aPanic = consume.Fault{Reason: consume.Panics, Detail: "poison\x00\x1b[2J", Tries: 3}

// TestRetriedLater: a dead letter is judged by the time at which it was stored, not by that of the retry; it is refused like
// any other request; and what asks nobody by name is forgotten.
func TestRetriedLater(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.run()
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
		stored := time.Now().Add(-time.Hour)
		d.now = func() time.Time { return stored }
		bind := d.bind()
		stale := d.another("shop")
		stale.now = time.Now
		late := stale.bind() // signed an hour after it was stored
		keep := newDeadLettersOf(t, w)
		for _, r := range []request{bind, late} {
			if err := keep.keep(t.Context(), letterOf(r, stored, aPanic), aPanic); err != nil {
				t.Fatal(err)
			}
		}
		nobody := letterOf(bind, stored, aPanic)
		nobody.Subject = "omi.v1.requests.binding.\xffx"
		if err := keep.keep(t.Context(), nobody, aPanic); err != nil {
			t.Fatal(err)
		}
		for _, l := range w.waiting(3) {
			if l.Reason != consume.Panics || l.Detail != "poison\\x00\\x1b[2J" || l.Tries != 3 || l.StoredAt != stored.Unix() {
				t.Errorf("kept is %+v", l)
			}
		}
		if ids, err := w.store.Admin().RetryAllDeadLetters(t.Context(), time.Now()); err != nil || len(ids) != 3 {
			t.Fatalf("retry all: %v, %v", ids, err)
		}
		if receipt := w.answer(bind); receipt.Event != events.RequestCommitted {
			t.Errorf("stored and signed an hour ago: %+v", receipt)
		}
		if receipt := w.answer(late); receipt.Reason != events.TimestampOutOfWindow {
			t.Errorf("signed an hour after it was stored: %+v", receipt)
		}
		w.waiting(0)
		w.clean()
	})
}

// newDeadLettersOf returns the dead letters of a world's database, with a handler that panics.
func newDeadLettersOf(t *testing.T, w *world) *letterBox {
	t.Helper()
	r, err := New(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: w.store, Conn: w.conn, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	r.deadLetters.handle = func(context.Context, []*queue.Message) error { panic("again") }
	return r.deadLetters
}

// TestPanicOnRetry: a dead letter that makes the code panic again ends nothing, and waits with its new reason. If it was
// committed before the panic, it is done.
func TestPanicOnRetry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	d := newDeadLettersOf(t, w)
	bind := newDeveloper(t, w.store, "org.omiappreg.alice", "cms").bind()
	m := letterOf(bind, time.Now(), aPanic)
	for range 2 { // a message that is delivered again after it was set aside is the same dead letter
		if err := d.keep(t.Context(), m, aPanic); err != nil {
			t.Fatal(err)
		}
	}
	first := w.waiting(1)[0]
	retry := func() error {
		if err := w.store.Admin().RetryDeadLetters(t.Context(), []string{first.ID}, time.Now()); err != nil {
			return err
		}
		return d.retry(t.Context())
	}
	if err := retry(); err != nil {
		t.Fatal(err)
	}
	l, err := w.store.Admin().DeadLetter(t.Context(), first.ID)
	if err != nil || l.Retrying || l.Reason != consume.Panics || l.Detail != "again" || l.Tries != first.Tries+1 || !bytes.Equal(l.Payload, bind.payload) {
		t.Fatalf("after a panic: %+v, %v", l, err)
	}

	for i, away := range []error{context.DeadlineExceeded, ErrComparing} {
		d.now = func() time.Time { return time.Now().Add(time.Duration(2*i) * retryWithin) }
		d.handle = func(context.Context, []*queue.Message) error { return away }
		if err := retry(); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := w.store.Admin().DeadLetter(t.Context(), first.ID); err != nil || !l.Retrying {
		t.Fatalf("while the database is away: %+v, %v", l, err)
	}
	if claimed, err := w.store.letters.Claim(t.Context(), 10, time.Now(), retryWithin); err != nil || len(claimed) != 0 {
		t.Fatalf("claimed twice: %+v, %v", claimed, err)
	}

	d.now = func() time.Time { return time.Now().Add(4 * retryWithin) } // its lease has ended
	d.handle = func(_ context.Context, batch []*queue.Message) error {
		batch[0].Keep()
		if err := batch[0].Ack(); err != nil {
			t.Error(err)
		}
		panic("after the commit")
	}
	if err := d.retry(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Admin().DeadLetter(t.Context(), first.ID); !errors.Is(err, ErrNoDeadLetter) {
		t.Errorf("after the commit: %v", err)
	}
	if err := retry(); !errors.Is(err, ErrNoDeadLetter) {
		t.Errorf("a retry of what is gone: %v", err)
	}
}

// TestDamagedService: a service whose row lags behind its history can't commit anything. The others wait for it no longer than it
// takes to find out.
func TestDamagedService(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "damaged")
		other := d.another("other")
		stop := w.run()
		w.commit(d.bind())
		w.commit(other.bind())
		stop()
		const damage = "UPDATE services SET sequence = sequence - 1 WHERE target = $1"
		if _, err := w.store.db.Exec(t.Context(), damage, d.target.String()); err != nil {
			t.Fatal(err)
		}
		w.publish(d.rotate())
		r := other.rotate()
		w.publish(r)
		w.run()
		if receipt := w.answer(r); receipt.Event != events.RequestCommitted {
			t.Errorf("%s %s", receipt.Event, receipt.Reason)
		}
	})
}
