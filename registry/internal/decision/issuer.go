package decision

import "omiappreg.org/keyrotation/events"

// Issuer is what a decision needs to make messages. It is all that connects a decision with the
// world, so the same issuer, state, requests and time lead to the same bytes. If Parallel works
// concurrently, the services share out the nonces in any order.
type Issuer struct {
	Rules    Rules
	Key      events.SigningKey   // signs events and receipts
	NewNonce func() events.Nonce // of events and of the receipts of changes
	// Parallel calls do for each number below n and returns when all calls are done. It may call do
	// concurrently; each is how many calls are worth a goroutine.
	Parallel func(n, each int, do func(i int))
}
