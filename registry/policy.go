package registry

import (
	"errors"
	"fmt"
	"time"

	"omiappreg.org/keyrotation/events"
)

// Policy is what an operator may choose of the registry's rules. The zero value of a member means its default.
type Policy struct {
	// Origin is the registry's domain name, which its messages carry. Required.
	Origin string
	// GracePeriod is how long an old key stays valid after a rotation, and the longest that a request may ask for.
	// Whole seconds. Default 300 s.
	GracePeriod time.Duration
	// MaxClockSkew is how far a request's timestamp may be from the time at which JetStream stored it. Whole seconds.
	// Default 300 s.
	MaxClockSkew time.Duration
	// RequireProof refuses a new key without its proof of possession. Default off, so that the spec's own payload is
	// served.
	RequireProof bool
	// RotationsPerMinute is how many rotations of one service are committed in a minute, counted by the time at which
	// JetStream stored them. Default 10; negative: no limit.
	RotationsPerMinute int
}

// Defaults of [Policy], as docs/protocol.md delivers them.
const (
	DefaultGracePeriod        = 300 * time.Second
	DefaultMaxClockSkew       = 300 * time.Second
	DefaultRotationsPerMinute = 10
)

// ErrPolicy means that a policy can't be served.
var ErrPolicy = errors.New("unusable policy")

// WithDefaults returns the policy with its defaults filled in, or [ErrPolicy].
func (p Policy) WithDefaults() (Policy, error) {
	if p.GracePeriod == 0 {
		p.GracePeriod = DefaultGracePeriod
	}
	if p.MaxClockSkew == 0 {
		p.MaxClockSkew = DefaultMaxClockSkew
	}
	if p.RotationsPerMinute == 0 {
		p.RotationsPerMinute = DefaultRotationsPerMinute
	}
	switch {
	case events.CheckOrigin(p.Origin) != nil:
		return p, fmt.Errorf("%w: the origin is %q: %w", ErrPolicy, p.Origin, events.ErrOrigin)
	case p.GracePeriod < time.Second || p.GracePeriod%time.Second != 0:
		return p, fmt.Errorf("%w: the grace period is whole seconds, 1 s or more, not %s", ErrPolicy, p.GracePeriod)
	case p.MaxClockSkew < time.Second || p.MaxClockSkew%time.Second != 0:
		return p, fmt.Errorf("%w: the clock skew is whole seconds, 1 s or more, not %s", ErrPolicy, p.MaxClockSkew)
	}
	return p, nil
}

func (p Policy) graceSeconds() int64 { return int64(p.GracePeriod / time.Second) }
func (p Policy) skewSeconds() int64  { return int64(p.MaxClockSkew / time.Second) }
