package registry

import (
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

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
	report, err := w.store.Admin().Recover(t.Context(), w.recovery())
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
		stream, err := w.js.Stream(t.Context(), streams.Receipts)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		dry := w.recovery()
		dry.DryRun = true
		for _, how := range []Recovery{dry, w.recovery()} {
			report, err := w.store.Admin().Recover(t.Context(), how)
			if err != nil || report.Changes != 4 || report.Services != 2 || report.WithoutReceipt != 4 || !report.Complete() {
				t.Fatalf("dry run %t: recovered %+v: %v", how.DryRun, report, err)
			}
		}
		again, err := w.store.Admin().Recover(t.Context(), w.recovery())
		if err != nil || again.Changes != 0 {
			t.Errorf("a second time recovered %+v: %v", again, err)
		}
		w.clean()
		in := newTestIntake(t, w.store, Policy{Origin: testOrigin}, time.Now)
		if o := decideOne(t, in, r.draft.Subject(), r.payload, time.Now().Unix()); o.Verdict != decision.Refused {
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
	report, err := w.store.Admin().Recover(t.Context(), w.recovery())
	if err != nil || !report.Complete() || report.Changes != 2 || len(report.UnknownApps) != 1 || report.UnknownApps[0] != d.target.App {
		t.Fatalf("recovered %+v: %v", report, err)
	}
	w.commit(d.rotate())
	w.settled()
	w.checked()
}
