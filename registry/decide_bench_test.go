package registry

import (
	"fmt"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
)

// BenchmarkDecide is what a rotation costs between the database's answer and the commit, in full batches: its signature
// verified, its event and receipt signed.
func BenchmarkDecide(b *testing.B) {
	const size = defaultBatch
	policy, err := Policy{Origin: testOrigin}.WithDefaults()
	if err != nil {
		b.Fatal(err)
	}
	app, now := mustApp(b, "org.omiappreg.alice"), time.Now().Unix()
	st, todo := newState(), make([]incoming, size)
	for i := range size {
		id, err := events.ParseServiceID(fmt.Sprintf("s-%d", i))
		if err != nil {
			b.Fatal(err)
		}
		target, current := events.Target{App: app, Service: id}, events.GenerateSigningKey()
		st.services[target] = &service{status: events.Active, sequence: 1, key: current.Public(), changedAt: now}
		draft := events.Draft{
			Kind: events.Rotation, Target: target, Timestamp: now, Nonce: events.NewNonce(), NewKey: events.GenerateSigningKey(),
		}
		payload, err := draft.Sign(current)
		if err != nil {
			b.Fatal(err)
		}
		todo[i] = newIncoming(draft.Subject(), payload, now, i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += size {
		batch := newBatch(policy, testKey, now, st, todo)
		batch.decide()
		for _, g := range batch.groups {
			if !g.changed() {
				b.Fatalf("%s was refused: %s", g.target, g.outcomes[0].reason)
			}
		}
	}
}
