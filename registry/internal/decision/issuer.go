package decision

import "omiappreg.org/keyrotation/events"

// Issuer is what a decision needs to make messages. It is all that connects a decision with the
// world, so the same issuer, state, requests and time lead to the same bytes.
type Issuer struct {
	Rules    Rules
	Key      events.SigningKey   // signs events and receipts
	NewNonce func() events.Nonce // of events and of the receipts of changes
	// Parallel calls do for each number below n, concurrently if that is worth it; each is how many
	// of them are worth a goroutine.
	Parallel func(n, each int, do func(i int))
}
