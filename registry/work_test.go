package registry

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

// TestPortions: all that a service asks is in one portion, so that what is left may be decided while that is committed. Whoever has to do
// with somebody who waits waits too.
func TestPortions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		requests string // in the stream's order: a service and a number, and a key if another asks for the same
		size     int
		want     []string // each beside the commit of the one before; empty: all that is left waits for that
	}{
		{"a1 b1 c1", 2, []string{"a1 b1", "c1"}},
		{"a1 b1 a2 b2", 2, []string{"a1 a2", "b1 b2"}},
		{"a1 b1 c1 a2 b2 c2", 3, []string{"a1 b1 a2", "c1 c2", "b2"}},
		{"a1 a2 a3 b1", 2, []string{"a1 a2", "b1", "a3"}},
		{"a1 a2 a3", 2, []string{"a1 a2", "", "a3"}},
		{"a1 b1 a2 b2 c1 a3 b3 a4 b4 a5", 8, []string{"a1 b1 a2 b2 a3 b3 a4 b4 a5", "c1"}},
		{"a1 b1:key c1:key", 1, []string{"a1", "b1:key", "", "c1:key"}},
		{"a1 b1:key a2:key a3", 2, []string{"a1", "b1:key", "", "a2:key a3"}},
	} {
		w := &work{intake: &intake{batch: c.size}}
		names, keys := map[events.Nonce]string{}, map[string]events.PublicKey{}
		for name := range strings.FieldsSeq(c.requests) {
			service, shared := name[:1], strings.TrimLeft(name[1:], "0123456789")
			key, known := keys[shared]
			if shared == "" || !known {
				key = events.GenerateSigningKey().Public()
				keys[shared] = key
			}
			r := &events.Request{Target: events.Target{App: mustApp(t, "org.omiappreg."+service)}, NewKey: key, Nonce: events.NewNonce()}
			names[r.Nonce] = name
			w.todo = append(w.todo, decision.Incoming{Request: r})
		}
		var got []string
		for len(w.todo) > 0 {
			portion := w.next()
			var list []string
			for _, one := range portion {
				list = append(list, names[one.Request.Nonce])
			}
			got = append(got, strings.Join(list, " "))
			w.committing = &committing{Batch: decision.NewBatch(decision.Issuer{}, time.Unix(testNow, 0), decision.NewState(), portion)}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s by %d: %q, want %q", c.requests, c.size, got, c.want)
		}
	}
}

// handled hands all messages over at once, to be decided in portions, one while the other is committed. It returns the answers
// in order and the final state, and counts how often something was decided beside a commit.
func handled(t *testing.T, store *Store, log []sent, size int, side *int) (answers []string, state string) {
	t.Helper()
	in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 12}, func() time.Time { return time.Unix(testNow, 0) })
	in.batch, in.committed = size, func([]events.Invalidation) {}
	messages := make([]*queue.Message, len(log))
	for i, m := range log {
		letter := ledger.DeadLetter{Subject: m.subject, Payload: m.payload, StoredAt: testNow}
		messages[i] = (&letterMessage{letter: letter, settled: make(chan bool, 1)}).message()
	}
	answers = make([]string, len(log))
	w := &work{intake: in, messages: messages, todo: in.parse(messages)}
	for w.more() {
		before := w.committing
		if err := w.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if before == nil {
			continue
		}
		for _, g := range before.Groups {
			if before.conflicts.Services[g.Target] {
				continue
			}
			for _, o := range g.Outcomes {
				answers[o.In.Index] += fmt.Sprint(o.Verdict, o.Reason, o.Event.Sequence)
			}
		}
		if w.committing != nil {
			*side++
		}
	}
	return answers, states(t, store)
}
