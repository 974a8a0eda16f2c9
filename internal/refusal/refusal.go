// Package refusal says what a broker refuses. Waiting doesn't help then: a person must change
// something at the broker or here. A log that says "waiting for the broker" hides that.
package refusal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
)

// Reason says why a broker that answers can't be used.
type Reason struct {
	What string // the rest of a sentence that begins with "the broker"
	Do   string
}

// The codes of nats-server's errors (its server/errors.json).
const (
	noPeers        jetstream.ErrorCode = 10005 // a starting cluster has none either: that passes
	mostConsumers  jetstream.ErrorCode = 10026
	mostStreams    jetstream.ErrorCode = 10027
	invalidStream  jetstream.ErrorCode = 10052 // its configuration exceeds a limit of the server
	noReplicas     jetstream.ErrorCode = 10074
	bytesRequired  jetstream.ErrorCode = 10113
	mostAckPending jetstream.ErrorCode = 10121
	mostRequested  jetstream.ErrorCode = 10125
)

// ErrPayload means that the broker does not take messages of the largest size.
var ErrPayload = errors.New("the broker's max_payload is too small")

// Limited is a connection with the broker's limits.
type Limited interface {
	HeadersSupported() bool
	MaxPayload() int64
}

// Limits returns an error if the connected broker can't carry what we need.
func Limits(nc Limited) error {
	if !nc.HeadersSupported() {
		return nats.ErrHeadersNotSupported
	}
	if most := nc.MaxPayload(); most > 0 && most < events.MaxMessage {
		return fmt.Errorf("%w: %d bytes; a message has up to %d", ErrPayload, most, events.MaxMessage)
	}
	return nil
}

// Of returns what the broker refuses; false if the error may pass by itself.
func Of(err error) (Reason, bool) {
	r := ofUser(err)
	if r == (Reason{}) {
		r = ofServer(err)
	}
	return r, r != Reason{}
}

// ofUser returns what the broker refuses this user.
func ofUser(err error) Reason {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired):
		return Reason{"does not let this user in", "give --nats-nkey or --nats-creds FILE, " +
			"or nats://USER:PASSWORD@HOST:PORT by --nats-url"}
	case errors.Is(err, nats.ErrNkeysNotSupported):
		return Reason{"does not know its users by nkeys", "leave out --nats-nkey"}
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return Reason{"has a certificate that is not trusted", "name its authority by --nats-ca FILE"}
	case errors.Is(err, nats.ErrSecureConnWanted):
		return Reason{"has no TLS", "name it by nats:// in --nats-url, without --nats-ca"}
	case errors.Is(err, nats.ErrPermissionViolation):
		return Reason{"does not permit what this process needs", "let this user publish or subscribe to that subject at the broker " +
			"(docs/operations.md, Who may do what at the broker), or give another user by --nats-nkey or --nats-creds"}
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return Reason{"gives this account no JetStream", "enable it for the account at the broker (jetstream: enabled), " +
			"or give a user of an account that has it by --nats-nkey or --nats-creds"}
	}
	return Reason{}
}

// ofServer returns what the broker refuses every user.
func ofServer(err error) Reason {
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		return Reason{"has JetStream off", "start nats-server with -js; if it was, its disk is full " +
			"or can't be written: see its log, make room, and restart it"}
	case errors.Is(err, nats.ErrHeadersNotSupported):
		return Reason{"has headers turned off", "remove no_header_support from its configuration, and restart it"}
	}
	if errors.Is(err, ErrPayload) || errors.Is(err, nats.ErrMaxPayload) {
		return Reason{"takes no messages of the size that is needed", fmt.Sprintf("let max_payload be %d or more, of the server and of the account", events.MaxMessage)}
	}
	var refused *jetstream.APIError
	if !errors.As(err, &refused) || refused.ErrorCode == noPeers {
		return Reason{}
	}
	switch refused.ErrorCode {
	case mostConsumers, mostStreams, invalidStream, noReplicas, bytesRequired, mostAckPending, mostRequested:
		return Reason{"has limits that leave no room for what this process needs", "raise them in its configuration (jetstream: limits), or those of the account"}
	}
	if room.Lacks(err) {
		return Reason{"has no space left", "give its JetStream more (max_file_store, or the account's limit), " +
			"or delete what doesn't belong there: nats stream ls"}
	}
	return Reason{}
}

// Behind returns the cause of an error of a question to JetStream. If the broker does not permit
// the question, it tells the connection, and the question waits in vain. A broker without JetStream
// has no responders.
func Behind(err error, nc *nats.Conn) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w (%w)", jetstream.ErrJetStreamNotEnabled, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		if nc == nil {
			return err
		}
		if last := nc.LastError(); errors.Is(last, nats.ErrPermissionViolation) && strings.Contains(last.Error(), `"$JS.`) {
			return last
		}
	}
	return err
}
