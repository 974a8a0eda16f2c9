// Package streams defines the JetStream streams and durable consumers of the protocol
// (docs/protocol.md §4): their names, and the configuration that each has at the broker.
//
// The registry creates all three streams, so a core service needs only a consumer:
//
//	config := streams.SubscriberConsumer("ledger")
//	consumer, err := js.CreateOrUpdateConsumer(ctx, streams.Invalidations, config)
//
// Subjects and messages are in package events, which needs no NATS client.
//
// # Compatibility
//
// The names of streams and durables are part of the protocol and stay the same within its version
// 1, the "v1" of every subject. Limits, such as how long receipts are kept, may change in a minor
// version. Compare configurations that you read from a broker member by member, because later
// versions may set members that this one leaves out.
package streams
