package process

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"
)

// Worded is an error with a text for a person in place of its own.
type Worded struct {
	Text string
	Err  error
}

// Error implements error.
func (w Worded) Error() string { return w.Text }

// Unwrap returns the error itself.
func (w Worded) Unwrap() error { return w.Err }

// WaitedInVain reports whether an error means that no answer came in time.
func WaitedInVain(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout)
}

// Plain replaces Go's "context deadline exceeded" by words that a person understands, and makes the
// process end with code 3. It returns any other error as it is.
func Plain(err error) error {
	if !WaitedInVain(err) && !errors.Is(err, context.Canceled) {
		return err
	}
	const late = "no answer in time"
	words := strings.NewReplacer(context.DeadlineExceeded.Error(), late, nats.ErrTimeout.Error(), late, context.Canceled.Error(), "interrupted")
	return Unreachable(Worded{words.Replace(err.Error()), err})
}
