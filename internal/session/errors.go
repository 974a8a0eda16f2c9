package session

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// notAllowed says why an account that may not ask got no answer: waiting longer would not change
// that.
func notAllowed(err, last error) error {
	// It says what to do about an answer that may still come.
	if waiting := (process.Worded{}); errors.As(err, &waiting) {
		err = waiting.Err
	}
	return process.Usage(process.Worded{
		Text: fmt.Sprintf("%v; the broker says: %s; omi doctor says what this account lacks", process.Plain(err), Denial(last)), Err: err,
	})
}

// Coded gives an error of a lookup its exit code: a refusal, an answer that can't be believed, or
// no answer.
func Coded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registryclient.ErrUnknownService), errors.As(err, new(*api.Problem)), errors.As(err, new(*events.Refusal)):
		return process.Refused(err)
	default:
		return process.Unreachable(err)
	}
}

// Denied reports whether an error is the broker's "this account may not".
func Denied(err error) bool { return errors.Is(err, nats.ErrPermissionViolation) }

// Denial is the broker's text about a missing permission.
func Denial(err error) string {
	return strings.TrimPrefix(err.Error(), nats.ErrPermissionViolation.Error()+": ")
}

// Unanswered is the error of a request whose answer is not waited for any more.
func Unanswered(err error) error {
	next := fmt.Sprintf("%v; run the same command again", err)
	if errors.Is(err, registryclient.ErrNoAnswer) {
		next = fmt.Sprintf("%v; run the same command again to pick up its answer", registryclient.ErrNoAnswer)
	}
	return process.Unreachable(process.Worded{Text: next, Err: err})
}
