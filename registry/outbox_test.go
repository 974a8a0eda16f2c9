package registry

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// TestHalfPublished: a change whose event is in its stream, and its receipt is not, stays in the outbox, and the receipt alone is
// published once more. Where the receipt is, and the event is not, both are. One that is deleted twice makes nobody believe that the database is another one.
func TestHalfPublished(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		d := newDeveloper(t, store, "org.omiappreg.alice", "one")
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		first, second := decideAll(t, in, d.bind(), d.another("two").bind()), decideAll(t, in, d.another("three").bind())
		messages := append(first[0].Messages(), first[1].Messages()...)
		messages = append(messages, second[0].Messages()...)
		half := slices.Delete(slices.Clone(messages), 2, 3) // all but the event of one, and the receipt of another
		half = half[:len(half)-1]
		for range 2 {
			if _, err := store.outbox.Delete(t.Context(), half, ledger.Position{}, 0); err != nil {
				t.Fatal(err)
			}
		}
		claimed, err := store.outbox.Claim(t.Context(), 10, time.Now().Add(2*ledger.LeaseFor))
		if err != nil {
			t.Fatal(err)
		}
		left := []decision.Message{messages[2], messages[3], messages[5]}
		if len(claimed) != len(left) {
			t.Fatalf("%d messages are left: %v", len(claimed), claimed)
		}
		for i, want := range left {
			if m := claimed[i]; m.Nonce != want.Nonce || m.Subject != want.Subject || !bytes.Equal(m.Payload, want.Payload) {
				t.Errorf("claimed %s %s\nwant %s %s", m.Subject, m.Payload, want.Subject, want.Payload)
			}
		}
		if _, err := store.outbox.Delete(t.Context(), claimed, ledger.Position{}, 0); err != nil {
			t.Fatal(err)
		}
		if left, err := store.outbox.Stale(t.Context(), time.Now().Add(time.Hour)); err != nil || left {
			t.Errorf("something is left: %t, %v", left, err)
		}
	})
}

// TestOtherIDAfterARestore: what was decided on a database that was replaced since commits nothing in the name of another
// service, which has the first one's id by now.
func TestOtherIDAfterARestore(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		d := newDeveloper(t, store, "org.omiappreg.alice", "one")
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		decideAll(t, in, d.bind())
		list := []request{d.rotate()}
		late := decision.NewBatch(in.issuer(), time.Now(), loadFor(t, in, list), incomingOf(list))
		late.Decide()
		const rename = "UPDATE services SET target = 'org.omiappreg.alice.other'"
		if _, err := store.db.Exec(t.Context(), rename); err != nil {
			t.Fatal(err)
		}
		lost, err := store.ledger.Commit(t.Context(), late.Groups, time.Now())
		if err != nil || !lost.Services[d.target] {
			t.Errorf("lost %v, %v", lost, err)
		}
	})
}

// TestIDsAgain: a server that took over may count the ids of services from the start again. No request is to blame for that.
func TestIDsAgain(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.Postgres))
	d := newDeveloper(t, store, "org.omiappreg.alice", "one")
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
	decideAll(t, in, d.bind())
	decideAll(t, in, d.rotate())
	const again = "SELECT setval(pg_get_serial_sequence('services', 'id'), 1, false)"
	if _, err := store.db.Exec(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	list := []request{d.another("two").bind()}
	b := decision.NewBatch(in.issuer(), time.Now(), loadFor(t, in, list), incomingOf(list))
	b.Decide()
	if lost, err := store.ledger.Commit(t.Context(), b.Groups, time.Now()); err != nil || !lost.Services[list[0].draft.Target] {
		t.Fatalf("lost %v, %v", lost, err)
	}
	if o := decideAll(t, in, list[0])[0]; o.Verdict != decision.Committed {
		t.Errorf("decided again: %v %s", o.Verdict, o.Reason)
	}
}
