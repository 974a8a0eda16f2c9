package registry

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

// Policy is the rules that an operator may choose. The zero value of a member means its default.
type Policy struct {
	// Origin is the registry's domain name, which all its messages carry. Required.
	Origin string
	// GracePeriod is how long an old key stays valid after a rotation, and the longest grace period
	// that a request may ask for. Whole seconds. Default 300 s.
	GracePeriod time.Duration
	// MaxClockSkew is the longest time between a request's timestamp and the time at which
	// JetStream stored it. Whole seconds. Default 300 s.
	MaxClockSkew time.Duration
	// RequireProof refuses requests for a new key that don't prove possession of that key. Default
	// [events.ProofsOwn], so that the spec's own payload is served.
	RequireProof events.Proofs
	// RotationsPerMinute is how many rotations of one service are committed in a minute, by the
	// times at which JetStream stored them. Default 10; negative: no limit.
	RotationsPerMinute int
	// ServicesPerApp is how many services an app may bind in total, including revoked ones. Default
	// 100,000; negative: no limit.
	ServicesPerApp int
	// MasterChangesPerMinute and MasterChangesPerDay are how often the Master Key of an app may
	// reset services or bind them again, in a minute and on a day (UTC), by the times at which
	// JetStream stored the requests. The first reset of each service in a day doesn't count.
	// Default 300 and 5,000; negative: no limit.
	MasterChangesPerMinute, MasterChangesPerDay int
	// JWKSMaxAge is how long a JWK Set may be kept before it is asked for again, in all caches
	// together. A client whose keys are verified by such sets signs with a new key only after that
	// time (docs/protocol.md §5.4), so it is at most a third of GracePeriod. Whole seconds. Default
	// 60 s, or a third of GracePeriod if that is shorter; negative: no set may be kept.
	JWKSMaxAge time.Duration
	// WaitFor names further durables for which a change waits (docs/protocol.md §8.1), besides
	// those of Auth and Billing. Other durables don't count: otherwise anyone who may create a
	// durable on the stream of events could hold up every change. NAME-* means every instance of
	// NAME.
	WaitFor []string
}

// Defaults of [Policy], as docs/protocol.md delivers them.
const (
	DefaultGracePeriod        = 300 * time.Second
	DefaultMaxClockSkew       = 300 * time.Second
	DefaultRotationsPerMinute = 10
	DefaultServicesPerApp     = 100_000
	DefaultMasterPerMinute    = 300
	DefaultMasterPerDay       = 5000
	DefaultJWKSMaxAge         = events.DefaultJWKSMaxAge * time.Second
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
	p.ServicesPerApp = cmp.Or(p.ServicesPerApp, DefaultServicesPerApp)
	p.MasterChangesPerMinute = cmp.Or(p.MasterChangesPerMinute, DefaultMasterPerMinute)
	p.MasterChangesPerDay = cmp.Or(p.MasterChangesPerDay, DefaultMasterPerDay)
	if p.RequireProof == "" {
		p.RequireProof = events.ProofsOwn
	}
	if p.JWKSMaxAge == 0 {
		p.JWKSMaxAge = min(DefaultJWKSMaxAge, p.longestJWKS())
	}
	if p.JWKSMaxAge <= 0 { // also if a third of the grace period is less than a second
		p.JWKSMaxAge = -time.Second
	}
	_, proofs := events.ParseProofs(string(p.RequireProof))
	switch {
	case proofs != nil:
		return p, fmt.Errorf("%w: the proof that is required is %q: %w", ErrPolicy, p.RequireProof, proofs)
	case events.CheckOrigin(p.Origin) != nil:
		return p, fmt.Errorf("%w: the origin is %q: %w", ErrPolicy, p.Origin, events.ErrOrigin)
	case p.GracePeriod < time.Second || p.GracePeriod%time.Second != 0:
		return p, fmt.Errorf("%w: the grace period is whole seconds, 1 s or more, not %s", ErrPolicy, p.GracePeriod)
	case slices.ContainsFunc(p.WaitFor, badDurable):
		return p, fmt.Errorf("%w: %q is not the name of a durable to wait for: it must not contain blanks or any of . * > / \\, and NAME-* is every "+
			"instance of NAME", ErrPolicy, p.WaitFor[slices.IndexFunc(p.WaitFor, badDurable)])
	case p.MaxClockSkew < time.Second || p.MaxClockSkew%time.Second != 0:
		return p, fmt.Errorf("%w: the clock skew is whole seconds, 1 s or more, not %s", ErrPolicy, p.MaxClockSkew)
	case p.JWKSMaxAge%time.Second != 0:
		return p, fmt.Errorf("%w: the age of a JWK Set is whole seconds, not %s", ErrPolicy, p.JWKSMaxAge)
	case p.JWKSMaxAge > p.longestJWKS():
		return p, fmt.Errorf("%w: a JWK Set may be kept for a third of the grace period at most, %s, and not for %s: a new key signs only "+
			"after that time, and the old one no longer than half of the grace period", ErrPolicy, p.longestJWKS(), p.JWKSMaxAge)
	}
	return p, nil
}

// badDurable reports whether a text is not the name of a durable, nor such a name followed by -*.
func badDurable(name string) bool {
	name = strings.TrimSuffix(name, "-*")
	return name == "" || strings.ContainsAny(name, ".*>/\\") || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// waitsFor reports whether a change waits for a durable.
func (p Policy) waitsFor(durable string) bool {
	return streams.CoreDurable(durable) || slices.ContainsFunc(p.WaitFor, func(name string) bool {
		instances, many := strings.CutSuffix(name, "*")
		return durable == name || many && strings.HasPrefix(durable, instances)
	})
}

// recordedWaitFor returns WaitFor as the database records it: sorted, each name once.
func (p Policy) recordedWaitFor() string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(p.WaitFor))), " ")
}

// recordedJWKS returns JWKSMaxAge in seconds, and -1 for none, because 0 would mean the default.
func (p Policy) recordedJWKS() int64 { return max(-1, int64(p.JWKSMaxAge/time.Second)) }

// longestJWKS returns the longest JWKSMaxAge that fits the grace period.
func (p Policy) longestJWKS() time.Duration { return (p.GracePeriod / 3).Truncate(time.Second) }

// rules returns what a decision depends on.
func (p Policy) rules() decision.Rules {
	return decision.Rules{
		Origin: p.Origin, Grace: p.graceSeconds(), Skew: p.skewSeconds(), RequireProof: p.RequireProof,
		RotationsPerMinute: p.RotationsPerMinute, ServicesPerApp: p.ServicesPerApp,
		MasterChangesPerMinute: p.MasterChangesPerMinute, MasterChangesPerDay: p.MasterChangesPerDay,
	}
}

func (p Policy) graceSeconds() int64 { return int64(p.GracePeriod / time.Second) }
func (p Policy) jwksSeconds() int64  { return max(0, p.recordedJWKS()) }
func (p Policy) skewSeconds() int64  { return int64(p.MaxClockSkew / time.Second) }
