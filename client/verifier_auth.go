package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// ErrNoAuth means that the broker is there, and no Auth Provider answers.
var ErrNoAuth = errors.New("the broker answers, but no Auth does: is omi-authsub (or `omi dev`) running there?")

const defaultAuthTimeout = 2 * time.Second

// AuthVerifier reports whether a signature is good now by asking the Auth Provider over NATS
// (docs/protocol.md §8.2). A receiver that uses it keeps nothing and runs nothing, and depends on
// Auth for every request.
//
// Auth's answers are not signed. Any party that may answer on omi.v1.auth.verify decides who
// passes, so this trusts the broker's permissions. A [Verifier] trusts the registry's key.
type AuthVerifier struct {
	// Conn is the connection to the broker, required.
	Conn *nats.Conn
	// Timeout bounds one question. Default 2 s.
	Timeout time.Duration
	// MaxAge is how old Auth's knowledge may be; an answer from older knowledge is ErrStale.
	// Default 1 minute.
	MaxAge time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Verify asks Auth. Any number of goroutines may call it. It fails with [ErrNoAuth], with
// [ErrNotReady] or [ErrStale] if Auth's own knowledge is not enough, with ctx's error, or with what
// is wrong with the question or the answer.
func (a AuthVerifier) Verify(ctx context.Context, q events.VerifyQuery) (events.VerifyAnswer, error) {
	answer, err := a.ask(ctx, q)
	if err != nil {
		return events.VerifyAnswer{}, fmt.Errorf("ask Auth: %w", err)
	}
	return answer, nil
}

func (a AuthVerifier) ask(ctx context.Context, q events.VerifyQuery) (events.VerifyAnswer, error) {
	question, err := q.Encode()
	if err != nil {
		return events.VerifyAnswer{}, fmt.Errorf("the question is not valid: %w", err)
	}
	timeout := cmp.Or(a.Timeout, defaultAuthTimeout)
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := registryclient.Ask(asking, a.Conn, events.AuthVerifySubject, question)
	switch {
	case ctx.Err() != nil:
		return events.VerifyAnswer{}, ctx.Err()
	case errors.Is(err, nats.ErrNoResponders):
		return events.VerifyAnswer{}, ErrNoAuth
	case asking.Err() != nil && err != nil:
		return events.VerifyAnswer{}, fmt.Errorf("%w (within %v)", ErrNoAuth, timeout)
	case err != nil:
		return events.VerifyAnswer{}, err
	}
	answer, err := events.ParseVerifyAnswer(reply)
	if err != nil {
		return events.VerifyAnswer{}, fmt.Errorf("its answer: %w", err)
	}
	if err := a.check(&q, &answer); err != nil {
		return events.VerifyAnswer{}, err
	}
	return answer, nil
}

// check compares an answer with the question and the clock. It finds mistakes, not liars.
func (a AuthVerifier) check(q *events.VerifyQuery, answer *events.VerifyAnswer) error {
	if answer.Result == events.Accepted && !answer.PublicKey.Verify(q.Message, q.Signature) {
		return errors.New("its answer accepts the signature as that of a key that did not make it")
	}
	if answer.AsOf == 0 {
		return ErrNotReady
	}
	now := time.Now
	if a.Now != nil {
		now = a.Now
	}
	if old := now().Sub(time.Unix(answer.AsOf, 0)); old > cmp.Or(a.MaxAge, defaultMaxAge) {
		return fmt.Errorf("%w (Auth knows the stream up to %s, %v ago)", ErrStale,
			time.Unix(answer.AsOf, 0).UTC().Format(time.RFC3339), old.Round(time.Second))
	}
	return nil
}
