package registry

import (
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// TestBound: the database tells the fair queue which services were ever bound, and the Master Keys of apps that it knows.
func TestBound(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		d := newDeveloper(t, store, "org.omiappreg.alice", "bound")
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		for _, r := range []request{d.bind(), d.revoke()} {
			if _, err := decideAndCommit(t.Context(), in, []decision.Incoming{decision.NewIncoming(r.draft.Subject(), r.payload, time.Now().Unix(), 0)}); err != nil {
				t.Fatal(err)
			}
		}
		stranger := d.another("stranger").target
		bound, err := store.ledger.Bound(t.Context(), []events.Target{stranger, d.target, d.target})
		if err != nil || !slices.Equal(bound, []events.Target{d.target}) {
			t.Errorf("bound are %v, %v", bound, err)
		}
		unknown, _ := events.ParseAppID("org.omiappreg.nobody")
		keys, err := store.ledger.Masters(t.Context(), []events.AppID{d.target.App, unknown, d.target.App})
		if err != nil || len(keys) != 1 || keys[d.target.App] != d.master.Public() {
			t.Errorf("the Master Keys are %v, %v", keys, err)
		}
	})
}
