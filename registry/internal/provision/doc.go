// Package provision makes the streams and the durable that the registry needs at the broker, and
// watches them while it runs.
//
//	Make ──▶ Open ──▶ Run: look every few seconds
//	                    │
//	                    ├─▶ a stream is missing ──▶ make it again, check the origin
//	                    ├─▶ another stream of events, or a shorter one ──▶ Config.Expect is told
//	                    ├─▶ another stream of requests, or another durable ──▶ Open's context ends
//	                    └─▶ sealed, paused, refused ──▶ StreamsErr, ConsumerErr
//
// What the streams mean is fixed by docs/protocol.md §4. A stream that means something else is
// [ErrStreamMeaning]: changing it could lose messages, so a person must decide. Limits are the
// operator's, and are applied to streams that exist.
package provision
