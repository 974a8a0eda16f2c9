package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// backup is a consistent copy of a registry's database.
type backup map[string][][]any

var backedUp = []string{"apps", "services", "history", "outbox", "stream_positions"}

func takeBackup(t *testing.T, store *Store) backup {
	t.Helper()
	b := backup{}
	tx, err := store.db.Reader().BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // it only read
	for _, table := range backedUp {
		if b[table], err = copyTable(t.Context(), tx, table); err != nil {
			t.Fatal(err)
		}
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
	err := store.db.InTx(context.WithoutCancel(t.Context()), func(tx *sqldb.Tx) error {
		for _, table := range backedUp {
			if _, err := tx.Exec(t.Context(), "DELETE FROM "+table); err != nil {
				return err
			}
			for _, row := range b[table] {
				if _, err := tx.Exec(t.Context(), "INSERT INTO "+table+" VALUES "+params(len(row)), row...); err != nil {
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
		p, _, err := w.store.ledger.Position(w.t.Context())
		if err != nil {
			return err
		}
		stream, err := w.js.Stream(w.t.Context(), streams.Invalidations)
		if err != nil {
			return err
		}
		if last := stream.CachedInfo().State.LastSeq; p.Place != last {
			return fmt.Errorf("%d, the stream ends at %d", p.Place, last)
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

// recover brings back so many changes of so many services.
func (w *world) recover(changes, services int) {
	w.t.Helper()
	report, err := w.store.Admin().Recover(w.t.Context(), w.recovery())
	if err != nil || report.Changes != changes || report.Services != services || !report.Complete() || report.WithoutReceipt > 0 {
		w.t.Fatalf("recovered %+v: %v", report, err)
	}
}

func (w *world) recovery() Recovery {
	return Recovery{JetStream: w.js, Trust: w.trust, Key: testKey, Log: testLog(w.t)}
}

// checked runs the check with the stream, which must find exactly these violations.
func (w *world) checked(want ...string) {
	w.t.Helper()
	report, err := w.store.Admin().CheckWithStream(w.t.Context(), w.js, w.trust, time.Now(), testLog(w.t))
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
