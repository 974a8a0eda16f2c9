package registry

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// testNow is the clock of tests that need none of their own.
const testNow = 1_705_412_610

// TestBatchesOfAnySize: however the stream's messages are cut into batches, every request gets the same answer, and
// the services end in the same state, as where nothing is guessed. So what a batch does side by side is what one by one would do, and
// so is what is decided beside a commit, and what a replica decides on a memory that others have made stale.
func TestBatchesOfAnySize(t *testing.T) {
	t.Parallel()
	folder, n := t.TempDir(), 0
	side := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		one := openStore(t, "sqlite:"+filepath.Join(folder, fmt.Sprintf("one-%d.db", n)))
		many := openStore(t, "sqlite:"+filepath.Join(folder, fmt.Sprintf("many-%d.db", n)))
		parts := openStore(t, "sqlite:"+filepath.Join(folder, fmt.Sprintf("parts-%d.db", n)))
		d := newDeveloper(t, one, "org.omiappreg.alice", "s-0")
		d.now = func() time.Time { return time.Unix(testNow, 0) }
		for _, store := range []*Store{many, parts} {
			if err := store.Admin().AddApp(t.Context(), App{d.target.App, d.master.Public()}, 1); err != nil {
				rt.Fatal(err)
			}
		}
		log := traffic(rt, d)
		size := rapid.IntRange(2, 60).Draw(rt, "batch")
		answers1, state1 := process(t, one, log, 1, 1, decision.Pessimistic)
		answersN, stateN := process(t, many, log, size, rapid.IntRange(1, 3).Draw(rt, "replicas"), decision.Optimistic)
		portion := rapid.IntRange(1, 6).Draw(rt, "portion")
		answersP, stateP := handled(t, parts, log, portion, &side)
		for i := range log {
			if answers1[i] != answersN[i] {
				rt.Fatalf("request %d: one by one %q, in batches of %d %q", i, answers1[i], size, answersN[i])
			}
			if answers1[i] != answersP[i] {
				rt.Fatalf("request %d: one by one %q, in portions of %d %q", i, answers1[i], portion, answersP[i])
			}
		}
		if state1 != stateN || state1 != stateP {
			rt.Fatalf("states differ:\n%s\n%s\n%s", state1, stateN, stateP)
		}
		for _, store := range []*Store{one, many, parts} {
			trust, err := events.NewTrust(testOrigin, testKey.Public())
			if err != nil {
				rt.Fatal(err)
			}
			report, err := store.Admin().Check(t.Context(), &trust, time.Unix(testNow, 0))
			if err != nil || len(report.Violations) > 0 {
				rt.Fatalf("check: %v %v", err, report.Violations)
			}
			_ = store.Close()
		}
	})
	if side == 0 {
		t.Error("nothing was decided beside a commit: this shows nothing of portions")
	}
}

// process takes messages through the registry in batches, and returns the answers in order and the final state. Several replicas
// alternate. Each batch has the given mode, however often remembered state was stale.
func process(t *testing.T, store *Store, log []sent, size, replicas int, mode decision.Mode) (answers []string, state string) {
	t.Helper()
	list := make([]*intake, replicas)
	for i := range list {
		list[i] = newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 12}, func() time.Time { return time.Unix(testNow, 0) })
	}
	answers = make([]string, len(log))
	heard := map[events.Target]*told{} // the stream of receipts, which all replicas read
	for _, in := range list {
		in.told = func(context.Context, []events.Target) (map[events.Target]*told, error) { return heard, nil }
	}
	trust := testTrust(t, list[0])
	for start := 0; start < len(log); start += size {
		in := list[start/size%replicas]
		if in.memory.pessimisticUntil = (time.Time{}); mode == decision.Pessimistic {
			in.memory.pessimisticUntil = time.Unix(testNow+1, 0)
		}
		var todo []decision.Incoming
		for i, m := range log[start:min(start+size, len(log))] {
			todo = append(todo, decision.NewIncoming(m.subject, m.payload, testNow, start+i))
		}
		outcomes, err := decideAndCommit(t.Context(), in, todo)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range outcomes {
			answers[o.In.Index] = fmt.Sprint(o.Verdict, o.Reason, o.Event.Sequence)
			m := o.Messages()[len(o.Messages())-1]
			if heard[o.In.Request.Target] == nil {
				heard[o.In.Request.Target] = &told{trust: trust}
			}
			one := heard[o.In.Request.Target]
			one.list = append(one.list, &jetstream.RawStreamMsg{Subject: m.Subject, Data: m.Payload})
		}
	}
	return answers, states(t, store)
}

func states(t *testing.T, store *Store) string {
	t.Helper()
	var lines []string
	for name, sequence := range dump(t, store) {
		lines = append(lines, fmt.Sprintf("%s %d", name, sequence))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestRivalReplicas: two replicas decide rivals on the same state; the one that commits second loses nothing but
// time, and what it decides again is right.
func TestRivalReplicas(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		decideAll(t, in, d.bind())
		other := d.another("crm")
		decideAll(t, in, other.bind())

		shared := events.GenerateSigningKey()
		rival := d.sign(events.Rotation, shared, d.current)                      // a copy of the service, or a thief
		sameKey := other.sign(events.Rotation, shared, other.current)            // another service, the same new key
		unborn, bornTwice := d.another("new").bind(), d.another("new").bind()    // two bindings of one service
		ours := []request{d.rotate(), unborn, other.another("bystander").bind()} // decided on the same state

		st := loadFor(t, in, ours)
		late := decision.NewBatch(in.issuer(), time.Now(), st, incomingOf(ours))
		late.Decide()
		late.SignRefusals()
		decideAll(t, in, rival, bornTwice)

		lost, err := store.ledger.Commit(t.Context(), late.Groups, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if len(lost.Services) != 2 || lost.Taken || !lost.Services[d.target] || !lost.Services[unborn.draft.Target] {
			t.Fatalf("lost %v, want the rotated service and the one that was born meanwhile", lost)
		}
		if o := decideAll(t, in, ours[0])[0]; o.Reason != events.SupersededKey {
			t.Errorf("decided again: %v %s, want superseded_key", o.Verdict, o.Reason)
		}
		if o := decideAll(t, in, unborn)[0]; o.Reason != events.AlreadyBound {
			t.Errorf("decided again: %v %s, want already_bound", o.Verdict, o.Reason)
		}
		checkRivalKey(t, in, sameKey)
		report, err := store.Admin().Check(t.Context(), nil, time.Now())
		if err != nil || len(report.Violations) > 0 {
			t.Errorf("check: %v %v", err, report.Violations)
		}
	})
}

// checkRivalKey commits a rotation that was decided when its new key was still free.
func checkRivalKey(t *testing.T, in *intake, r request) {
	t.Helper()
	st := loadFor(t, in, []request{r})
	st.TakenKeys = map[events.PublicKey]bool{} // as it was read before the rival committed
	b := decision.NewBatch(in.issuer(), time.Now(), st, incomingOf([]request{r}))
	b.Decide()
	lost, err := in.store.ledger.Commit(t.Context(), b.Groups, time.Now())
	if err != nil || !lost.Taken || !lost.Services[r.draft.Target] {
		t.Fatalf("a key that is taken by now: %v, lost %v", err, lost)
	}
	if o := decideAll(t, in, r)[0]; o.Reason != events.KeyInUse {
		t.Errorf("decided again: %v %s, want key_in_use", o.Verdict, o.Reason)
	}
}

func loadFor(t *testing.T, in *intake, list []request) *decision.State {
	t.Helper()
	return loadAll(t, in.store, incomingOf(list))
}

// loadAll reads everything.
func loadAll(t interface {
	Helper()
	Context() context.Context
	Fatal(args ...any)
}, store *Store, todo []decision.Incoming) *decision.State {
	t.Helper()
	st := decision.NewState()
	st.Mode = decision.Pessimistic
	if err := store.ledger.Load(t.Context(), todo, st, true); err != nil {
		t.Fatal(err)
	}
	return st
}

func incomingOf(list []request) []decision.Incoming {
	var todo []decision.Incoming
	for i, r := range list {
		todo = append(todo, decision.NewIncoming(r.draft.Subject(), r.payload, r.draft.Timestamp, i))
	}
	return todo
}

// decideAll takes requests through the registry in one batch, and returns their outcomes in order.
func decideAll(t *testing.T, in *intake, list ...request) []decision.Outcome {
	t.Helper()
	done, err := decideAndCommit(t.Context(), in, incomingOf(list))
	if err != nil {
		t.Fatal(err)
	}
	outcomes := make([]decision.Outcome, len(list))
	for _, o := range done {
		outcomes[o.In.Index] = o
	}
	return outcomes
}

// TestLargeBatch: a batch that needs several statements is still one transaction.
func TestLargeBatch(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		d := newDeveloper(t, store, "org.omiappreg.alice", "s")
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		var binds, rotations []request
		for i := range MaxBatch {
			s := d.another(fmt.Sprintf("s-%d", i))
			binds = append(binds, s.bind())
			rotations = append(rotations, s.rotate())
		}
		for _, list := range [][]request{binds, rotations} {
			for i, o := range decideAll(t, in, list...) {
				if o.Verdict != decision.Committed {
					t.Fatalf("request %d: %s", i, o.Reason)
				}
			}
		}
		report, err := store.Admin().Check(t.Context(), nil, time.Now())
		if err != nil || len(report.Violations) > 0 || report.Changes != 2*MaxBatch {
			t.Errorf("check: %v %+v", err, report)
		}
	})
}
