package registry

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestHangingCommit: a server waits for a standby that is not there. A wait that somebody cancels
// leaves the outcome unknown, although the server says that it has committed; the registry looks
// again, so nothing is lost or done twice. When the server waits no longer, everything is answered.
func TestHangingCommit(t *testing.T) {
	t.Parallel()
	server := testenv.NewPostgresServer(t)
	w, d, _ := boundWorld(t, server.CreateDatabase("reg", server.Addr()))
	admin, err := pgx.Connect(t.Context(), server.URL().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close(t.Context()) })
	const waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
	cancelOne := func() {
		t.Helper()
		testenv.Eventually(t, patience, "a COMMIT waits", func() error {
			var n int
			if err := admin.QueryRow(t.Context(), "SELECT count(pg_cancel_backend(pid)) "+waiting).Scan(&n); err != nil || n == 0 {
				return fmt.Errorf("%d: %w", n, err)
			}
			return nil
		})
	}
	server.Execute("ALTER SYSTEM SET synchronous_standby_names = 'nosuch'")
	server.Execute("SELECT pg_reload_conf()")

	done := make(chan error, 1)
	go func() {
		var err error
		for err == nil { // the server takes its settings in its own time
			err = w.store.db.InTx(t.Context(), func(tx *sqldb.Tx) error {
				_, err := tx.Exec(t.Context(), "UPDATE apps SET added_at = added_at")
				return err
			})
		}
		done <- err
	}()
	cancelOne()
	select {
	case err := <-done:
		if !errors.Is(err, sqldb.ErrUnknownOutcome) || !sqldb.Transient(err) {
			t.Errorf("a wait that was cancelled: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("a wait that was cancelled counts as a commit")
	}

	r := d.rotate()
	w.publish(r)
	cancelOne()
	again := d.rotate()
	w.publish(again)
	testenv.Eventually(t, patience, "another COMMIT waits", func() error {
		var n int
		if err := admin.QueryRow(t.Context(), "SELECT count(*) "+waiting).Scan(&n); err != nil || n == 0 {
			return fmt.Errorf("%d: %w", n, err)
		}
		return nil
	})
	server.Execute("ALTER SYSTEM RESET synchronous_standby_names")
	server.Execute("SELECT pg_reload_conf()")
	for i, r := range []request{r, again} {
		if receipt := w.answer(r); receipt.Sequence != int64(i+2) {
			t.Errorf("answered by %+v", receipt)
		}
	}
	w.settled()
	w.checked()
	w.oneSequenceOnce(d.target)
}
