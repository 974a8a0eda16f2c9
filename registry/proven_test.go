package registry

import (
	"testing"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

// unproven returns a request without its proof, as the spec prints a rotation.
func (d *developer) unproven(kind events.RequestKind, newKey, by events.SigningKey) request {
	d.t.Helper()
	r := d.sign(kind, newKey, by)
	r.payload = changed(d.t, r.payload, func(envelope map[string]any) { delete(envelope, "new_key_signature") })
	return r
}

func changed(t testing.TB, payload []byte, change func(envelope map[string]any)) []byte {
	t.Helper()
	var envelope map[string]any
	if err := json.Unmarshal(payload, &envelope); err != nil {
		t.Fatal(err)
	}
	change(envelope)
	payload, err := json.Marshal(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// TestRequiredProofs: what a request needs a proof for, by the policy.
func TestRequiredProofs(t *testing.T) {
	t.Parallel()
	for policy, needs := range map[events.Proofs]map[events.RequestKind]bool{
		events.ProofsNone: {},
		"":                {events.Binding: true, events.Reset: true}, // as delivered
		events.ProofsOwn:  {events.Binding: true, events.Reset: true},
		events.ProofsAll:  {events.Binding: true, events.Reset: true, events.Rotation: true},
	} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			store := openStore(t, testenv.Database(t, testenv.SQLite))
			in := newTestIntake(t, store, Policy{Origin: testOrigin, RequireProof: policy}, testNowTime)
			d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
			d.now = testNowTime
			for _, kind := range []events.RequestKind{events.Binding, events.Rotation, events.Reset} {
				by, next := d.master, events.GenerateSigningKey()
				if kind == events.Rotation {
					by = d.current
				}
				want := events.Reason("")
				if needs[kind] {
					want = events.InvalidProof
				}
				if got := decideAll(t, in, d.unproven(kind, next, by))[0].Reason; got != want {
					t.Errorf("%s without a proof: %q, want %q", kind, got, want)
				}
				if d.current = next; needs[kind] {
					d.current = events.GenerateSigningKey()
					if got := decideAll(t, in, d.sign(kind, d.current, by))[0].Reason; got != "" {
						t.Errorf("%s with a proof: %q", kind, got)
					}
				}
			}
			decideAll(t, in, d.revoke())
		})
	}
}

// TestSquatting: a service asks for the key that another one has just announced, and does not have it. Of what is handed over
// together, who proves to have the key gets it, though it was stored last, on every policy.
func TestSquatting(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, testNowTime)
	owner := newDeveloper(t, store, "org.omiappreg.alice", "owner")
	owner.now = testNowTime
	squatter := owner.another("squatter")
	decideAll(t, in, owner.bind(), squatter.bind())
	reasons := func(portion int, list ...request) (got []events.Reason) {
		t.Helper()
		messages := make([]*queue.Message, len(list))
		for i, r := range list {
			letter := ledger.DeadLetter{Subject: r.draft.Subject(), Payload: r.payload, StoredAt: testNow}
			messages[i] = (&letterMessage{letter: letter, settled: make(chan bool, 1)}).message()
		}
		w := &work{intake: in, messages: messages, todo: in.parse(messages)}
		w.batch = portion
		got = make([]events.Reason, len(list))
		for len(w.todo) > 0 {
			outcomes, err := decideAndCommit(t.Context(), in, w.next())
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range outcomes {
				got[o.In.Index] = o.Reason
			}
		}
		return got
	}
	for _, portion := range []int{1, 16} {
		announced := events.GenerateSigningKey()
		squats := squatter.unproven(events.Rotation, announced, squatter.current)
		rotates := owner.sign(events.Rotation, announced, owner.current)
		if got := reasons(portion, squats, rotates); got[0] != events.KeyInUse || got[1] != "" {
			t.Fatalf("by portions of %d: the squatter %q, the owner %q", portion, got[0], got[1])
		}
		owner.current = announced

		// Data that names no service can be signed for any: a proof over it is nobody's in particular. And one's own key is not
		// taken away by a repetition of one's own.
		next := events.GenerateSigningKey()
		own := owner.unproven(events.Rotation, next, owner.current)
		again := owner.sign(events.Rotation, next, owner.current)
		if got := reasons(portion, own, unnamed(t, squatter, next), again); got[0] != "" || got[1] != events.KeyInUse || got[2] == "" {
			t.Fatalf("by portions of %d: %q", portion, got)
		}
		owner.current = next
	}
}

// unnamed is a rotation with a proof, as the spec prints it: it does not say which service it is of.
func unnamed(t *testing.T, d *developer, newKey events.SigningKey) request {
	t.Helper()
	r := d.sign(events.Rotation, newKey, d.current)
	r.payload = changed(t, r.payload, func(envelope map[string]any) {
		data, _ := envelope["data"].(map[string]any)
		delete(data, "app_id")
		delete(data, "service_id")
		text, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		canonical, err := events.Canonical(text)
		if err != nil {
			t.Fatal(err)
		}
		envelope["signature"], envelope["new_key_signature"] = d.current.Sign(canonical), newKey.Sign(canonical)
	})
	return r
}
