// Package registryclient is the other parties' side of a conversation with the registry, over NATS.
//
//   - A [Sender] publishes a signed [Message] and waits for its receipt (docs/protocol.md §5 to
//     §7.3).
//   - A [Registry] looks up services, histories and keys (§8). [Current] does so for a process
//     whose trust changes while it runs. [Ask] sends any question of §8, also one to Auth.
//
// Both believe only what a trusted key of the registry has signed. A Domain Service imports the
// package by way of package client, so it brings along neither a database nor a broker.
package registryclient
