package decision

import (
	"bytes"
	"testing"

	"omiappreg.org/keyrotation/events"
)

// TestSameInputsSameBytes takes one batch of many services through the whole way twice: changes, refusals for each kind of
// reason, a key that two services want, an earlier key, a limit of the app and a copy of a request.
func TestSameInputsSameBytes(t *testing.T) {
	t.Parallel()
	k := newBook(t, Rules{RotationsPerMinute: 2, ServicesPerApp: 3})
	a := k.developer("org.omiappreg.alice", "a")
	b, late := a.another("b"), a.another("late")
	first := a.bind()
	old := a.current
	k.decideAll(first, b.bind(), a.rotate())
	shared, thief := events.GenerateSigningKey(), events.GenerateSigningKey()
	todo := incomingOf([]request{
		first,
		a.sign(events.Rotation, events.GenerateSigningKey(), old),
		a.sign(events.Rotation, shared, a.current),
		b.sign(events.Rotation, shared, b.current),
		b.sign(events.Revocation, events.SigningKey{}, thief),
		b.rotate(),
		late.bind(),
		a.another("too-many").bind(),
	})
	want := []string{
		"duplicate", "superseded_key", "committed", "key_in_use", "invalid_signature", "committed", "committed", "too_many_services",
	}
	decide := func() []Outcome {
		k.issuer.NewNonce, k.budget = numbered(), VerificationBudget{}
		return inOrderOf(k.decideOn(k.state(), todo), len(todo))
	}
	one, two := decide(), decide()
	for i := range one {
		got := map[Verdict]string{Committed: "committed", Duplicate: "duplicate", Refused: string(one[i].Reason)}[one[i].Verdict]
		if got != want[i] {
			t.Errorf("request %d: %s, want %s", i, got, want[i])
		}
		if !bytes.Equal(one[i].EventBytes, two[i].EventBytes) || !bytes.Equal(one[i].ReceiptBytes, two[i].ReceiptBytes) || len(one[i].ReceiptBytes) == 0 {
			t.Errorf("request %d: the same inputs led to other bytes:\n%s\n%s", i, one[i].ReceiptBytes, two[i].ReceiptBytes)
		}
	}
}
