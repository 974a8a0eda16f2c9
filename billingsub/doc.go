// Package billingsub is the Billing Service's side of key rotation. It answers whose key this was
// at some time (docs/protocol.md §8.3).
//
// [New] opens Billing's own database. [Billing.Run] applies the registry's invalidations as they
// arrive, keeps every key's interval of validity for ever, and answers over NATS.
// [Billing.Attribute] answers in the process, and [Billing.Routes] over HTTP:
//
//	billing, err := billingsub.New(ctx, billingsub.Config{
//		JetStream: js, DatabaseURL: "sqlite:billing.db", Trust: trust, Log: log,
//	})
//	defer billing.Close()
//	go billing.Run(ctx)
//	answer, err := billing.Attribute(ctx, query)
//
// The program omi-billingsub is this package with flags, metrics and TLS.
//
// # Guarantees
//
// A usage record that was signed before a rotation and arrives after it belongs to the same
// service. A record that was signed with a key after that key's end belongs to no service. Each
// event has its effect once, whatever is delivered twice, late or in another order, and whenever
// the process dies.
//
// The stream keeps the last 64 events of each service. A process that is new, or was stopped for
// longer, has a gap in what it knows about that service, and fills it from the registry's history
// (docs/protocol.md §7.2). Until then it doesn't guess: if the gap could change an answer and the
// registry can't be asked, the error is [ErrUnavailable].
//
// # Errors
//
// Run and New wait for what may come back. They return [ErrURL], [ErrInUse] and [ErrDurable] for
// mistakes in the configuration, and other errors if waiting can't help.
//
// # Compatibility
//
// The package follows semantic versioning: from 1.0 on, within a major version, exported
// identifiers keep their meaning, and [Config] only gains optional fields. The database belongs to
// the package. A newer version migrates it when it opens it; an older version refuses it. Error
// texts, log messages and the layout of the database may change in any version.
package billingsub
