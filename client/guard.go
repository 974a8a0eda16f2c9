package client

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
)

// Checker reports whether a signature is good now (docs/protocol.md §8.2). An error means that this
// can't be known.
type Checker interface {
	Verify(ctx context.Context, q events.VerifyQuery) (events.VerifyAnswer, error)
}

const (
	defaultMaxSkew   = 60 * time.Second
	defaultMaxBody   = 16 << 20
	defaultMaxNonces = 1 << 16
)

// GuardConfig says whom a [Guard] asks, and what its limits are. Checker is required.
type GuardConfig struct {
	Checker Checker
	// MaxSkew is how far a signature's time may be from ours, both ways, in whole seconds. For as
	// long, a captured request could be sent to another replica, which does not know the nonces
	// here. Default 60 s: enough for a clock that is not synchronised and a slow upload. The
	// protocol's 300 s are for requests that wait in a stream.
	MaxSkew time.Duration
	// MaxBody is the limit for the body of a request, in bytes. The body is held in memory until it
	// is known to be the signed one. Default 16 MiB.
	MaxBody int64
	// MaxNonces is how many nonces are remembered of one caller. If a caller sends more within
	// MaxSkew, the oldest are forgotten, and requests of that age are refused. Default 65,536.
	MaxNonces int
	// Fields are the names of header fields that must be covered if a message has them, in addition
	// to Content-Type and Content-Digest: those on which the handlers rely.
	Fields []string
	// Log gets a line when a signature could not be checked. Nil disables it.
	Log *slog.Logger
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Guard lets pass what a service has signed (docs/signing.md): each request once, and none that it
// can't check.
type Guard struct {
	cfg    GuardConfig
	nonces *nonces
}

// NewGuard returns a Guard. One is enough for a process: what requests share is the memory of
// nonces.
func NewGuard(cfg GuardConfig) *Guard {
	cfg.MaxSkew = cmp.Or(cfg.MaxSkew, defaultMaxSkew)
	cfg.MaxBody = cmp.Or(cfg.MaxBody, defaultMaxBody)
	cfg.MaxNonces = cmp.Or(cfg.MaxNonces, defaultMaxNonces)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Guard{cfg, newNonces(cfg.MaxNonces, seconds(cfg.MaxSkew), cfg.Now)}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// Caller is the service that signed a message that passed.
type Caller struct {
	Target events.Target
	Answer events.VerifyAnswer // by which key, and whether that is in grace
	// Nonce is of this message alone, to the extent that this process remembers. If a handler's
	// effect must not come twice, also after a restart or by another replica, the handler stores
	// Target and Nonce in the transaction of that effect.
	Nonce   events.Nonce
	Created time.Time
}

type callerKey struct{}

// CallerFrom returns the signer of the request that is being handled; false if no [Guard] let it
// pass.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// check lets a message pass, or returns an [*events.Refusal]. Another error means that the answer
// can't be known. The body is read only for a caller whose signature is good, and the nonce is used
// up only by the body that was signed with it.
func (g *Guard) check(ctx context.Context, m *covered, body func() ([]byte, error)) (Caller, []byte, error) {
	k, err := m.claim(g.cfg.Fields)
	if err != nil {
		return Caller{}, nil, err
	}
	if err := g.timely(&k, g.cfg.Now().Unix()); err != nil {
		return Caller{}, nil, err
	}
	answer, err := g.cfg.Checker.Verify(ctx, k.query)
	if err != nil {
		return Caller{}, nil, err
	}
	if answer.Result != events.Accepted {
		return Caller{}, nil, refusedByAuth(answer)
	}
	content, err := body()
	if err != nil {
		return Caller{}, nil, err
	}
	if err := k.checkDigest(content); err != nil {
		return Caller{}, nil, err
	}
	if err := g.nonces.use(k.query.Target, k.nonce, k.created); err != nil {
		return Caller{}, nil, err
	}
	return Caller{Target: k.query.Target, Answer: answer, Nonce: k.nonce, Created: time.Unix(k.created, 0)}, content, nil
}

func (g *Guard) timely(k *claim, now int64) error {
	limit := seconds(g.cfg.MaxSkew)
	switch age := now - k.created; {
	case age > limit:
		return refusal(events.TimestampOutOfWindow,
			"It was signed %d s ago, by our clock, and may be %d s old: sign it again.", age, limit)
	case -age > limit:
		return refusal(events.TimestampOutOfWindow, "It was signed %d s from now, by our clock: set the caller's clock.", -age)
	case k.expires != 0 && now >= k.expires:
		return refusal(events.TimestampOutOfWindow, "Its own expiry time is over: sign it again.")
	}
	return nil
}

// problem is what a caller is told about an error: no internal details.
func (g *Guard) problem(ctx context.Context, err error) *api.Problem {
	if p := (*api.Problem)(nil); errors.As(err, &p) {
		return p
	}
	if r := (*events.Refusal)(nil); errors.As(err, &r) {
		status := http.StatusUnauthorized
		if r.Reason == Misdirected {
			status = http.StatusMisdirectedRequest
		}
		return &api.Problem{Title: http.StatusText(status), Status: status, Detail: r.Detail, Reason: string(r.Reason)}
	}
	if ctx.Err() == nil {
		g.cfg.Log.WarnContext(ctx, "check a signature", "error", err)
	}
	return api.Unavailable("The signature can't be checked right now; try again.")
}
