package decision

import (
	"fmt"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
)

// BenchmarkDecide is what a rotation costs between the database's answer and the commit, in full batches: its signature
// verified, its event and receipt signed.
func BenchmarkDecide(b *testing.B) {
	const size = 1024
	issuer := Issuer{
		Rules: Rules{Origin: "registry.omiappreg.org", Grace: 300, Skew: 300, RequireProof: events.ProofsOwn, RotationsPerMinute: 10},
		Key:   events.GenerateSigningKey(), NewNonce: events.NewNonce, Parallel: parallel.Each,
	}
	app, err := events.ParseAppID("org.omiappreg.alice")
	if err != nil {
		b.Fatal(err)
	}
	at := time.Now()
	now := at.Unix()
	st, todo := NewState(), make([]Incoming, size)
	for i := range size {
		id, err := events.ParseServiceID(fmt.Sprintf("s-%d", i))
		if err != nil {
			b.Fatal(err)
		}
		target, current := events.Target{App: app, Service: id}, events.GenerateSigningKey()
		st.Services[target] = &Service{Status: events.Active, Sequence: 1, Key: current.Public(), ChangedAt: now}
		draft := events.Draft{
			Kind: events.Rotation, Target: target, Timestamp: now, Nonce: events.NewNonce(), NewKey: events.GenerateSigningKey(),
		}
		payload, err := draft.Sign(current)
		if err != nil {
			b.Fatal(err)
		}
		todo[i] = NewIncoming(draft.Subject(), payload, now, i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += size {
		batch := NewBatch(issuer, at, st, todo)
		batch.Decide()
		for _, g := range batch.Groups {
			if !g.Changed() {
				b.Fatalf("%s was refused: %s", g.Target, g.Outcomes[0].Reason)
			}
		}
	}
}
