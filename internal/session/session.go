// Package session connects a command of `omi` to a deployment: the flags that say where it is and
// which registry is trusted, the keys that the flags name, and the exit codes of errors.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// Session is a connection to one deployment. Its registry is known and trusted, unless
// [Connection.WithBroker] made it. Its methods are safe for concurrent use.
type Session struct {
	Conn      *nats.Conn
	JetStream jetstream.JetStream
	Trust     events.Trust
	Info      events.RegistryInfo // what the registry says of itself
}

// KeptJWKS is how long caches may keep a JWK Set.
func (s *Session) KeptJWKS() time.Duration { return time.Duration(s.Info.JWKSMaxAge) * time.Second }

// With runs a command that ends by itself, by its timeout or by a signal. A timeout of 0
// means none.
func (c Connection) With(timeout time.Duration, do func(context.Context, *Session) error) error {
	return c.WithBroker(func(ctx context.Context, s *Session) error {
		opening, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		s, err := Open(opening, s.Conn, c.Trusted())
		if err != nil {
			return err
		}
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return do(ctx, s)
	})
}

// WithBroker is like [Connection.With], without a timeout, for questions that need no registry: the
// session trusts none.
func (c Connection) WithBroker(do func(context.Context, *Session) error) error {
	if err := c.Check(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), process.StopSignals()...)
	defer stop()
	connecting, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	Tighten(c.NKey, c.Creds)
	log := process.NewLog(os.Stderr, slog.LevelError)
	nc, err := c.ConnectNow(connecting, "omi", log)
	if err != nil {
		return err
	}
	defer process.Close(nc, log)
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	err = do(ctx, &Session{Conn: nc, JetStream: js})
	if last := nc.LastError(); process.WaitedInVain(err) && Denied(last) {
		return notAllowed(err, last)
	}
	return process.Plain(err)
}

// Open asks the registry for its identity. It asks and sends nothing more if --trust does
// not name the registry's key, because the answers would not be believed.
func Open(ctx context.Context, nc *nats.Conn, trusted process.Trust) (*Session, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	s := &Session{Conn: nc, JetStream: js}
	info, err := registryclient.RegistryInfo(ctx, nc)
	if process.WaitedInVain(err) {
		err = fmt.Errorf("%w: look at its log, or wait longer with --timeout", err)
	}
	if err != nil {
		return nil, Coded(err)
	}
	s.Info = info
	if trusted.Origin != "" && trusted.Origin != info.Origin {
		return nil, process.Refused(fmt.Errorf("the registry here answers for %s, and --origin says %s: it is another registry, or "+
			"--nats-url is wrong", info.Origin, trusted.Origin))
	}
	if len(trusted.Keys) > 0 || trusted.File != "" {
		trusted.Origin = info.Origin
		if s.Trust, err = trusted.Load(); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(info.PublicKeys, func(k events.PublicKey) bool { return slices.Contains(s.Trust.PublicKeys(), k) }) {
			return nil, process.Refused(fmt.Errorf("the registry here signs with %s, which --trust does not name: it is another registry, "+
				"or its key was changed; ask its operator", KeyList(info.PublicKeys)))
		}
		return s, nil
	}
	if s.Trust, err = events.NewTrust(info.Origin, info.PublicKeys...); err != nil {
		return nil, fmt.Errorf("the registry's own description: %w", err)
	}
	return s, nil
}

// Sender sends requests and awaits their receipts.
func (s *Session) Sender() registryclient.Sender {
	return registryclient.Sender{JetStream: s.JetStream, Trust: s.Trust}
}

func (s *Session) registry() registryclient.Registry {
	return registryclient.Registry{Conn: s.Conn, Trust: s.Trust}
}

// Record asks the registry for a service's record, and believes only its signature.
func (s *Session) Record(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	record, err := s.registry().ServiceRecord(ctx, t)
	return record, Coded(err)
}

// History asks the registry for a service's history, and believes only its signature.
func (s *Session) History(ctx context.Context, t events.Target) (events.ServiceHistory, error) {
	history, err := s.registry().ServiceHistory(ctx, t)
	return history, Coded(err)
}

// KeyList names keys in a sentence.
func KeyList(keys []events.PublicKey) string {
	var texts []string
	for _, key := range keys {
		texts = append(texts, key.String())
	}
	return strings.Join(texts, ", ")
}

// NewDraft returns a request that is made now, with a new nonce. The caller sets its Origin, which
// is that of the session's trust.
func NewDraft(kind events.RequestKind, t events.Target) events.Draft {
	return events.Draft{Kind: kind, Target: t, Timestamp: time.Now().Unix(), Nonce: events.NewNonce()}
}

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
