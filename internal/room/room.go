// Package room recognises the errors of a broker that has no space left.
package room

import (
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// The codes of nats-server's errors (its server/errors.json).
const (
	accountExceeded jetstream.ErrorCode = 10002 // the account's limit, at a message
	noPeers         jetstream.ErrorCode = 10005 // a cluster without a server that has the space
	insufficient    jetstream.ErrorCode = 10023 // the broker's whole store is full
	memoryExceeded  jetstream.ErrorCode = 10028
	storageExceeded jetstream.ErrorCode = 10047 // the account's limit, or reserved
	storeFailed     jetstream.ErrorCode = 10077 // the stream's own limits
	streamExceeded  jetstream.ErrorCode = 10122 // the account's limit for a stream
	// more messages arrive at the stream than it can store
	tooMany jetstream.ErrorCode = 10167
)

// Lacks reports whether JetStream did not store a message, or did not create a stream, for lack of
// space.
func Lacks(err error) bool {
	switch code(err) {
	case accountExceeded, noPeers, insufficient, memoryExceeded, storageExceeded, storeFailed, streamExceeded:
		return true
	}
	return false
}

// TooMany reports whether JetStream did not store a message because too many others were waiting to
// be stored.
func TooMany(err error) bool { return code(err) == tooMany }

// OfStream reports whether a message did not fit into the stream's own limit, and not into that of
// the whole broker.
func OfStream(err error) bool { return code(err) == storeFailed }

func code(err error) jetstream.ErrorCode {
	var refused *jetstream.APIError
	if !errors.As(err, &refused) {
		return 0
	}
	return refused.ErrorCode
}
