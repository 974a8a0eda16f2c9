// Package authsub is the Auth Provider's side of key rotation. It answers whether a signature is
// good now (docs/protocol.md §8.2).
//
// [New] opens Auth's own database and loads the keyrings of all services into memory. [Auth.Run]
// applies the registry's invalidations as they arrive and answers over NATS. [Auth.Verify] answers
// in the process, and [Auth.Routes] over HTTP:
//
//	auth, err := authsub.New(ctx, authsub.Config{
//		JetStream: js, DatabaseURL: "sqlite:auth.db", Trust: trust, Log: log,
//	})
//	defer auth.Close()
//	go auth.Run(ctx)
//	answer := auth.Verify(ctx, query)
//
// The program omi-authsub is this package with flags, metrics and TLS.
//
// # Guarantees
//
// Each event has its effect once, whatever is delivered twice, late or in another order, and
// whenever the process dies: an event is acknowledged after its effect is committed. While the
// broker, the registry or the database is unavailable, Auth goes on answering from memory.
// [events.VerifyAnswer.AsOf] says up to which time it knows the stream. If Auth doesn't know a key,
// it asks the registry before it refuses the signature, because the event may still be on its way.
//
// Every Auth process applies every event, so each has its own durable consumer.
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
package authsub
