package registry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// TestCopyCommittedMeanwhile: while a replica reads what it needs for a decision, another one commits a copy of the same
// request. Wherever that falls between two queries, the request is answered as committed, and never as refused.
func TestCopyCommittedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"binding", "rotation"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testenv.EachEngine(t, func(t *testing.T, url string) {
				other := newTestIntake(t, openStore(t, url), Policy{Origin: testOrigin}, time.Now)
				d, reads := newDeveloper(t, other.store, "org.omiappreg.alice", "copied"), 0
				for at := 1; at <= max(reads, 1); at++ {
					reads = commitCopyAt(t, url, other, d.another(fmt.Sprintf("copied-%d", at)), kind, at)
				}
				if reads < 3 {
					t.Errorf("a decision read the database %d times: its reads were not seen", reads)
				}
			})
		})
	}
}

// commitCopyAt has a copy committed before the read with this number, and returns how many reads the decision took.
func commitCopyAt(t *testing.T, url string, other *intake, d *developer, kind string, at int) (reads int) {
	t.Helper()
	asked := d.bind()
	if kind == "rotation" {
		decideAll(t, other, asked)
		asked = d.rotate()
	}
	faults, deciding := testenv.NewFaults(testenv.Fault{}), false
	faults.Before = func(step string) {
		if !deciding || !strings.HasPrefix(step, "SELECT") {
			return
		}
		if reads++; reads == at {
			decideAll(t, other, asked)
		}
	}
	store, err := OpenStore(sqldb.Wrap(t.Context(), faults.Session), url, faults.Log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
	in.memory.pessimisticUntil = time.Now().Add(time.Hour) // so that it reads everything
	deciding = true
	b, err := decideBatch(t.Context(), in, incomingOf([]request{asked}))
	if err != nil {
		t.Fatal(err)
	}
	deciding = false
	if o := b.Groups[0].Outcomes[0]; o.Verdict == decision.Refused {
		t.Errorf("%s, a copy was committed before read %d of %d: refused with %s", kind, at, reads, o.Reason)
	}
	return reads
}
