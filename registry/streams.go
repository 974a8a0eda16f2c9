package registry

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/registry/internal/provision"
)

// Errors of what the registry needs at the broker.
var (
	// ErrStreamMeaning means that a stream or durable exists and doesn't mean what docs/protocol.md
	// §4 says. Changing it could lose messages, so a person must decide.
	ErrStreamMeaning = provision.ErrStreamMeaning
	// ErrStreamRoom means that the broker can't reserve what the operator says that a stream is to
	// have.
	ErrStreamRoom = provision.ErrStreamRoom
	// ErrOrigin means that this registry has signed the last event of the stream under another
	// domain name. A reader of the stream believes one name. Under the new name all earlier events
	// would count for nothing, and readers that know the old name would ignore new ones.
	ErrOrigin = provision.ErrOrigin
	// ErrSealed means that a stream takes no messages any more.
	ErrSealed = provision.ErrSealed
	// ErrPaused means that the durable delivers nothing until a time that an operator gave.
	ErrPaused = provision.ErrPaused
	// ErrNotReady means that Run does not serve requests and lookups yet.
	ErrNotReady = provision.ErrNotReady
)

// StreamLimits bounds the space that the streams take at the broker, so that no account can take
// all of it. Where a number is 0, a stream keeps the bound that it has, and gets the default if it
// has none.
type StreamLimits struct {
	// Waiting is how many requests of one kind may wait for one service; the broker refuses more.
	// Default [streams.RequestsWaiting].
	Waiting int64
	// RequestBytes is the size of the stream of requests: the broker refuses what doesn't fit.
	// ReceiptBytes is that of the receipts: the oldest go. Each is 1 GiB by default, or less: at
	// most a quarter of what the broker can reserve when the bound is set.
	RequestBytes, ReceiptBytes int64
	// EventBytes is the size of the stream of events. By default it has no bound: only the registry
	// writes there, and what the two others can't take is left for it.
	EventBytes int64
}

// EnsureStreams creates the streams of docs/protocol.md §4 that are missing, and applies changed
// limits to those that exist. Choices of the operator that the contract leaves open (replicas,
// placement, size) stay. replicas is for streams that are created here; 0 means 1.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, replicas int) error {
	return EnsureStreamsWithin(ctx, js, replicas, StreamLimits{})
}

// EnsureStreamsWithin is [EnsureStreams] with the operator's limits.
func EnsureStreamsWithin(ctx context.Context, js jetstream.JetStream, replicas int, limits StreamLimits) error {
	return provision.Ensure(ctx, js, replicas, provision.Limits(limits))
}
