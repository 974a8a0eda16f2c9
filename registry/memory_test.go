package registry

import (
	"fmt"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// TestStaleMemory: a replica that remembers what another one, or whoever restored the database, has changed since refuses nobody
// for it, and commits nothing on it.
func TestStaleMemory(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		clock := time.Unix(testNow, 0)
		now := func() time.Time { return clock }
		policy := Policy{Origin: testOrigin, RotationsPerMinute: 3}
		stale, other := newTestIntake(t, store, policy, now), newTestIntake(t, store, policy, now)
		app := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		app.now = now
		n := 0
		for _, c := range staleCases() {
			n++
			d := app.another(fmt.Sprintf("s-%d", n))
			rival := app.another(fmt.Sprintf("rival-%d", n))
			decideAll(t, stale, d.bind(), rival.bind())
			decideAll(t, stale, d.rotate())
			if stale.memory.of(d.target, clock) == nil {
				t.Fatal("the service is not remembered: this shows nothing")
			}
			clock = clock.Add(2 * pessimisticFor) // it guesses again
			requests, want := c.requests(d, rival, func(list ...request) { decideAll(t, other, list...) }, func(query string) {
				if _, err := store.db.Exec(t.Context(), query, d.target.String()); err != nil {
					t.Fatal(err)
				}
			})
			for i, o := range decideAll(t, stale, requests...) {
				got := string(o.Reason)
				if o.Verdict != decision.Refused {
					got = map[decision.Verdict]string{decision.Committed: "committed", decision.Duplicate: "duplicate"}[o.Verdict]
				}
				if got != want[i] {
					t.Errorf("%s: request %d: %s, want %s", c.name, i+1, got, want[i])
				}
			}
			clock = clock.Add(2 * pessimisticFor)
		}
		report, err := store.Admin().Check(t.Context(), nil, testNowTime())
		if err != nil || len(report.Violations) > 0 {
			t.Errorf("check: %v %v", err, report.Violations)
		}
	})
}

// staleCase is a service that is bound and has rotated once, as one replica remembers it.
type staleCase struct {
	name string
	// requests lets another replica, or somebody in the database, change it, and returns what the first one is asked for then.
	requests func(d, rival *developer, other func(...request), sql func(string)) (list []request, want []string)
}

func staleCases() []staleCase {
	type other = func(...request)
	type sql = func(string)
	return []staleCase{
		{"rotated elsewhere, then by its key", func(d, _ *developer, other other, _ sql) ([]request, []string) {
			other(d.rotate())
			return []request{d.rotate(), d.rotate()}, []string{"committed", "committed"}
		}},
		{"rotated elsewhere, then by the key that is remembered", func(d, _ *developer, other other, _ sql) ([]request, []string) {
			thief := *d
			other(d.rotate())
			return []request{thief.rotate(), thief.rotate()}, []string{"superseded_key", "invalid_signature"}
		}},
		{"revoked elsewhere", func(d, _ *developer, other other, _ sql) ([]request, []string) {
			thief := *d
			other(d.revoke())
			return []request{thief.rotate(), d.bind()}, []string{"unknown_service", "committed"}
		}},
		{"revoked and bound elsewhere", func(d, _ *developer, other other, _ sql) ([]request, []string) {
			other(d.revoke(), d.bind())
			return []request{d.bind(), d.reset()}, []string{"already_bound", "committed"}
		}},
		{"committed elsewhere, and sent again", func(d, _ *developer, other other, _ sql) ([]request, []string) {
			rotation, reset := d.rotate(), d.reset()
			other(rotation, reset)
			return []request{reset, rotation, d.rotate()}, []string{"duplicate", "duplicate", "committed"}
		}},
		{"a nonce that was used elsewhere", func(d, _ *developer, other other, _ sql) ([]request, []string) {
			first := d.reset()
			other(first)
			draft := first.draft
			draft.NewKey = events.GenerateSigningKey()
			payload, err := draft.Sign(d.master)
			if err != nil {
				d.t.Fatal(err)
			}
			return []request{{draft, payload}, d.rotate()}, []string{"nonce_reused", "committed"}
		}},
		{"limited as it is remembered, and an operator let it go", func(d, _ *developer, other other, sql sql) ([]request, []string) {
			other() // nothing
			sql("UPDATE services SET recent_rotations = '' WHERE target = $1")
			return []request{d.rotate(), d.rotate(), d.rotate()}, []string{"committed", "committed", "committed"}
		}},
		{"whoever had the key first is gone", func(d, rival *developer, other other, _ sql) ([]request, []string) {
			thief := *d
			other(d.revoke())
			first := thief.rotate()
			return []request{first, rival.sign(events.Rotation, first.draft.NewKey, rival.current)}, []string{"unknown_service", "committed"}
		}},
		{"whoever had the key first has it", func(d, rival *developer, _ other, _ sql) ([]request, []string) {
			first := d.rotate()
			return []request{first, rival.sign(events.Rotation, first.draft.NewKey, rival.current)}, []string{"committed", "key_in_use"}
		}},
	}
}

// TestComparedBeforeAMove: each thing that a decision rests on is compared at the commit.
func TestComparedBeforeAMove(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		decideAll(t, in, d.bind())
		for column, value := range map[string]string{
			"id": "id + 1", "target": "'org.omiappreg.alice.another'", "status": "'revoked'", "sequence": "sequence + 1",
			"public_key": "NULL", "changed_at": "changed_at + 1",
		} {
			b, err := decideBatch(t.Context(), in, incomingOf([]request{d.sign(events.Rotation, events.GenerateSigningKey(), d.current)}))
			if err != nil || !b.State.Remembered[d.target] || !b.Groups[0].Changed() {
				t.Fatalf("it is not decided on what is remembered: %v", err)
			}
			before := takeBackup(t, store)
			if _, err := store.db.Exec(t.Context(), "UPDATE services SET "+column+" = "+value); err != nil {
				t.Fatal(err)
			}
			lost, err := store.ledger.Commit(t.Context(), b.Groups, time.Now())
			if err != nil || !lost.Services[d.target] || lost.Taken {
				t.Errorf("another %s: lost %v, %v", column, lost, err)
			}
			before.restore(t, store)
		}
	})
}

// TestRememberedIDIsAnothers: in a database that was restored, the id that a service is remembered by may be another's. Each of the
// two is told apart then, and nothing of the one is written for the other.
func TestRememberedIDIsAnothers(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in, other := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now), newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		gone := newDeveloper(t, store, "org.omiappreg.alice", "gone")
		here := gone.another("here")
		empty := takeBackup(t, store)
		decideAll(t, in, gone.bind())
		empty.restore(t, store)
		decideAll(t, other, here.bind())
		for _, query := range []string{"UPDATE services SET id = $1", "UPDATE history SET service = $1"} {
			if _, err := store.db.Exec(t.Context(), query, in.memory.of(gone.target, time.Now()).ID); err != nil {
				t.Fatal(err)
			}
		}
		after := takeBackup(t, store)
		one := gone.sign(events.Rotation, events.GenerateSigningKey(), gone.current)
		two := here.sign(events.Rotation, events.GenerateSigningKey(), here.current)
		for _, list := range [][]request{{one, two}, {two, one}} {
			b, err := decideBatch(t.Context(), in, incomingOf(list))
			if err != nil || b.Groups[0].Was.ID != b.Groups[1].Was.ID {
				t.Fatalf("the two don't have one id: this shows nothing; %v", err)
			}
			lost, err := store.ledger.Commit(t.Context(), b.Groups, time.Now())
			if err != nil || len(lost.Services) != 1 || !lost.Services[gone.target] {
				t.Errorf("lost %v, %v; want %v", lost, err, gone.target)
			}
			if report, err := store.Admin().Check(t.Context(), nil, time.Now()); err != nil || len(report.Violations) > 0 {
				t.Errorf("check: %v %v", err, report.Violations)
			}
			after.restore(t, store)
		}
	})
}

// TestGarbageAgainstMemory: what names a service and says nothing does not tell what is remembered of it from what is true, so it
// makes the registry forget nothing, and read no more than before.
func TestGarbageAgainstMemory(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	rival := d.another("rival")
	decideAll(t, in, d.bind(), rival.bind())
	victim := d.another("victim")
	decideAll(t, in, victim.bind())
	first := d.rotate()
	list := incomingOf([]request{first, rival.sign(events.Rotation, first.draft.NewKey, rival.current)}) // so that all is read
	garbage := decision.NewIncoming(events.RotationSubject+victim.target.String(), []byte("{}"), testNow, len(list))
	if garbage.Refusal == nil {
		t.Fatal("it is no garbage")
	}
	if _, err := decideBatch(t.Context(), in, append(list, garbage)); err != nil {
		t.Fatal(err)
	}
	if in.memory.of(victim.target, time.Now()) == nil || !in.memory.pessimisticUntil.IsZero() {
		t.Errorf("the service is forgotten, or everything is read until %v", in.memory.pessimisticUntil)
	}
}

// TestContested: a service that two replicas move in turn costs one commit that fails, and not each, and the others are remembered.
func TestContested(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		clock := time.Unix(testNow, 0)
		now := func() time.Time { return clock }
		in, other := newTestIntake(t, store, Policy{Origin: testOrigin}, now), newTestIntake(t, store, Policy{Origin: testOrigin}, now)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		d.now = now
		var others []*developer
		list := []request{d.bind()}
		for i := range 2 * staleAtMost {
			others = append(others, d.another(fmt.Sprintf("s-%d", i)))
			list = append(list, others[i].bind())
		}
		decideAll(t, in, list...)
		for i, wait := range []time.Duration{0, 0, 2 * pessimisticFor} {
			decideAll(t, other, d.reset())
			clock = clock.Add(wait)
			list := []request{d.reset()}
			for _, one := range others {
				list = append(list, one.rotate())
			}
			b, err := decideBatch(t.Context(), in, incomingOf(list))
			if err != nil || b.State.Mode == decision.Pessimistic || len(b.State.Remembered) < len(others) {
				t.Fatalf("%d: it does not remember what nobody else moved: %v", i, err)
			}
			if got, want := b.State.Remembered[d.target], i != 1; got != want {
				t.Errorf("%d: the service that another moved is believed to be as it was: %t, want %t", i, got, want)
			}
			decideAll(t, in, list...)
		}
	})
}

// TestUsedKeys: a key that was used before, by whomever, is refused, and whoever sends such keys has one batch decided twice
// and then none.
func TestUsedKeys(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		clock := time.Unix(testNow, 0)
		in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: -1}, func() time.Time { return clock })
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		d.now = in.now
		bob := newDeveloper(t, store, "org.omiappreg.bob", "shop")
		bob.now = in.now
		honest, other := d.another("honest"), d.another("other")
		decideAll(t, in, d.bind(), honest.bind(), other.bind())
		first := d.current
		decideAll(t, in, d.rotate(), honest.rotate())
		for i, used := range []events.SigningKey{first, d.current, other.current, d.master, bob.master} {
			list := []request{honest.rotate(), d.sign(events.Rotation, used, d.current)}
			for _, again := range []bool{false, true} {
				b, err := decideBatch(t.Context(), in, incomingOf(list))
				if err != nil {
					t.Fatal(err)
				}
				if (b.State.Mode == decision.Pessimistic) != again {
					t.Fatalf("key %d: it is pessimistic: %t, want %t", i, b.State.Mode == decision.Pessimistic, again)
				}
				lost, err := store.ledger.Commit(t.Context(), b.Groups, clock)
				in.memory.learn(clock, b, lost, err)
				if err != nil || lost.Taken == again || again && len(lost.Services) > 0 {
					t.Fatalf("key %d: lost %+v, %v", i, lost, err)
				}
				if again {
					b.SignRefusals()
					for j, want := range []events.Reason{"", events.KeyInUse} {
						if got := b.Groups[j].Outcomes[0].Reason; got != want {
							t.Errorf("key %d: request %d: %q, want %q", i, j+1, got, want)
						}
					}
				}
			}
			clock = clock.Add(2 * pessimisticFor)
		}
	})
}

// TestUsedKeyInEachPortion: it isolates nobody.
func TestUsedKeyInEachPortion(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	d.now = func() time.Time { return time.Unix(testNow, 0) }
	var log []sent
	var want []string
	bind := d.bind()
	first := d.current
	log, want = append(log, bind.sent()), append(want, "01")
	for i := range 4 * mostFutile {
		other := d.another(fmt.Sprintf("s-%d", i))
		used := other.sign(events.Binding, first, other.master)
		log, want = append(log, used.sent(), other.bind().sent()), append(want, "1key_in_use0", "01")
	}
	side := 0
	answers, _ := handled(t, store, log, 4, &side)
	for i := range log {
		if answers[i] != want[i] {
			t.Errorf("request %d: %q, want %q", i, answers[i], want[i])
		}
	}
}

// TestGuardAgainstMemory: that a service is remembered does not take it off hold while the database lacks its last changes.
func TestGuardAgainstMemory(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	js := jetStreamOn(t, testenv.NewBroker(t))
	if err := EnsureStreams(t.Context(), js, 1); err != nil {
		t.Fatal(err)
	}
	in, guard := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now), newGuard(t, store, js)
	in.guard = guard
	compareAgain := func() {
		t.Helper()
		guard.Suspect("the test restores it")
		if err := guard.Compare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	compareAgain()
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	decideAll(t, in, d.bind())
	old := takeBackup(t, store)
	rotated := decideAll(t, in, d.rotate())[0]
	for _, m := range rotated.Messages() {
		if _, err := js.Publish(t.Context(), m.Subject, m.Payload); err != nil {
			t.Fatal(err)
		}
	}
	old.restore(t, store)
	again := incomingOf([]request{d.rotate()})
	compareAgain()
	if b, err := decideBatch(t.Context(), in, again); err != nil || len(b.OnHold) != 1 || guard.OnHold() != 1 {
		t.Errorf("it is not on hold: %v", err)
	}
	st, err := in.load(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	compareAgain() // after what was read
	if _, _, err := guard.Admit(t.Context(), st, again); err == nil || guard.OnHold() != 1 {
		t.Errorf("it is admitted by what was read before the comparison: %v", err)
	}
}

// TestMemoryBounded: a service with many rotations in a minute is not remembered, and of the others only so many.
func TestMemoryBounded(t *testing.T) {
	t.Parallel()
	m := newMemory()
	target := events.Target{App: mustApp(t, "org.omiappreg.alice")}
	m.put(target, &decision.Service{Sequence: 1})
	m.put(target, &decision.Service{Sequence: 2, Recent: make([]int64, rememberRecent+1)})
	if m.of(target, time.Now()) != nil {
		t.Error("a service with too many rotations is remembered")
	}
	for i := range rememberAtMost + 10 {
		target.App = mustApp(t, fmt.Sprintf("org.omiappreg.app-%d", i))
		m.put(target, &decision.Service{Sequence: 1})
	}
	if n := m.services.Len(); n != rememberAtMost {
		t.Errorf("%d services are remembered", n)
	}
}
