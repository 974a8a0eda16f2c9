package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
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

// ErrOtherPolicy means that the database records another [Policy] than this registry's. If both
// were used, the life of an old key would depend on which replica takes the request.
// [Config.ChangePolicy] changes the record.
var ErrOtherPolicy = errors.New("the registry's database records another policy")

// policyEvery is how often a running replica checks whether another one has changed the policy.
const policyEvery = 2 * time.Second

// setting is one value of a policy, as the database records it.
type setting struct {
	name, flag, value string
}

// settings returns what all replicas on one database must share. A name never changes its meaning,
// because other versions read it too.
func (p Policy) settings() []setting {
	return []setting{
		{"origin", "--origin", p.Origin},
		{"grace_period_seconds", "--grace-period", strconv.FormatInt(p.graceSeconds(), 10)},
		{"max_clock_skew_seconds", "--max-clock-skew", strconv.FormatInt(p.skewSeconds(), 10)},
		{"require_proof", "--require-proof", string(p.RequireProof)},
		{"rotations_per_minute", "--rate-limit", strconv.Itoa(max(-1, p.RotationsPerMinute))},
		{"services_per_app", "--services-per-app", strconv.Itoa(max(-1, p.ServicesPerApp))},
		{"master_changes_per_minute", "--master-rate-limit", strconv.Itoa(max(-1, p.MasterChangesPerMinute))},
		{"master_changes_per_day", "--master-quota", strconv.Itoa(max(-1, p.MasterChangesPerDay))},
		{"jwks_max_age_seconds", "--jwks-max-age", strconv.FormatInt(p.recordedJWKS(), 10)},
		{"wait_for", "--wait-for", p.recordedWaitFor()},
	}
}

// recorded returns the policy as the database records it.
func (p Policy) recorded() map[string]string {
	values := map[string]string{}
	for _, one := range p.settings() {
		values[one.name] = one.value
	}
	return values
}

// withSettings returns the policy with the recorded settings. A setting that is not recorded stays
// as it is, and a setting that only another version knows is ignored.
func (p Policy) withSettings(recorded map[string]string) (Policy, error) {
	var errs []error
	number := func(name string, now int64) int64 {
		text, ok := recorded[name]
		if !ok {
			return now
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		return n
	}
	if origin, ok := recorded["origin"]; ok {
		p.Origin = origin
	}
	p.GracePeriod = time.Duration(number("grace_period_seconds", p.graceSeconds())) * time.Second
	p.MaxClockSkew = time.Duration(number("max_clock_skew_seconds", p.skewSeconds())) * time.Second
	p.RotationsPerMinute = int(number("rotations_per_minute", int64(p.RotationsPerMinute)))
	p.ServicesPerApp = int(number("services_per_app", int64(p.ServicesPerApp)))
	p.MasterChangesPerMinute = int(number("master_changes_per_minute", int64(p.MasterChangesPerMinute)))
	p.MasterChangesPerDay = int(number("master_changes_per_day", int64(p.MasterChangesPerDay)))
	p.JWKSMaxAge = time.Duration(number("jwks_max_age_seconds", p.recordedJWKS())) * time.Second
	if names, ok := recorded["wait_for"]; ok {
		p.WaitFor = strings.Fields(names)
	}
	if text, ok := recorded["require_proof"]; ok {
		p.RequireProof = events.Proofs(text)
	}
	if err := errors.Join(errs...); err != nil {
		return p, fmt.Errorf("read the recorded policy: %w", err)
	}
	return p.WithDefaults()
}

// differences describes each setting that differs from the recorded policy, with both values.
func (p Policy) differences(recorded Policy) []string {
	var list []string
	there := recorded.settings()
	for i, here := range p.settings() {
		if there[i].value != here.value {
			unit := ""
			if strings.HasSuffix(here.name, "_seconds") {
				unit = "s"
			}
			list = append(list, fmt.Sprintf("%s is recorded as %s%s and is %s%s here", here.flag, cmp.Or(there[i].value, "none"), unit,
				cmp.Or(here.value, "none"), unit))
		}
	}
	return list
}

// mustBe returns [ErrOtherPolicy] unless the database records this policy.
func (p Policy) mustBe(recorded map[string]string) error {
	other, err := p.withSettings(recorded)
	if err != nil {
		return fmt.Errorf("%w, which can't be read (%w): record this registry's policy with --change-policy", ErrOtherPolicy, err)
	}
	if differences := p.differences(other); len(differences) > 0 {
		return fmt.Errorf("%w: %s: use the recorded values, or change them for every replica with --change-policy",
			ErrOtherPolicy, strings.Join(differences, ", "))
	}
	return nil
}

// agreeOnPolicy records this policy if it is the first on this database, and returns
// [ErrOtherPolicy] if another one is recorded.
func (r *Registry) agreeOnPolicy(ctx context.Context) error {
	return sqldb.Await(ctx, r.cfg.Log, func() error {
		if err := r.cfg.Store.admin.RecordPolicy(ctx, r.cfg.Policy.recorded(), false); err != nil {
			return err
		}
		return r.cfg.Store.Admin().CheckPolicy(ctx, r.cfg.Policy)
	})
}

// changePolicy replaces the recorded policy by this registry's, and logs the differences.
func (r *Registry) changePolicy(ctx context.Context) error {
	return sqldb.Await(ctx, r.cfg.Log, func() error {
		recorded, err := r.cfg.Store.admin.Policy(ctx)
		if err != nil {
			return err
		}
		if err := r.cfg.Store.admin.RecordPolicy(ctx, r.cfg.Policy.recorded(), true); err != nil {
			return err
		}
		if r.cfg.Policy.mustBe(recorded) != nil {
			r.cfg.Log.WarnContext(ctx, "changed the recorded policy: every registry on this database follows it from now on",
				"before", recorded, "now", r.cfg.Policy.recorded())
		}
		return nil
	})
}

// followPolicy adopts each policy that another replica records, until ctx ends. It returns
// [ErrOtherPolicy] if the origin has changed, because this registry can't serve another origin.
func (r *Registry) followPolicy(ctx context.Context) error {
	tick := time.NewTicker(policyEvery)
	defer tick.Stop()
	now := r.cfg.Policy
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		recorded, err := r.cfg.Store.admin.Policy(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.cfg.Log.Warn("looking at the recorded policy failed, trying again", "error", err)
			}
			continue
		}
		next, err := now.withSettings(recorded)
		switch {
		case err != nil:
			r.cfg.Log.Error("the recorded policy can't be used; this registry continues with its own", "error", err)
		case next.Origin != now.Origin:
			return now.mustBe(recorded)
		case len(now.differences(next)) > 0:
			r.cfg.Log.Warn("another registry changed the recorded policy, and this one follows it from now on; it won't start again with its own settings",
				"before", now.recorded(), "now", recorded)
			r.goBy(next)
			now = next
		}
	}
}

// goBy decides and answers by another policy, from the next batch on.
func (r *Registry) goBy(p Policy) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	r.intake.policy = p
	r.Lookup.policy.Store(&p)
}

// The operator replaces a Master Key that leaked or was lost:
//
// 	replace-master ──▶ apps: the new key; reserved_keys: the old one, for ever
// 	                        ▲
// 	decide: by the key that was read ──▶ commit: if it is still the app's key ──▶ stands
// 	                                        └── otherwise ──▶ decided again
//
// No registry remembers a Master Key between batches, so the new one counts from the commit of its
// replacement on.

// followMasters reports each Master Key that is replaced while this registry runs, in the log and
// by a notice to all subscribers, until ctx ends. Nothing depends on either.
func (r *Registry) followMasters(ctx context.Context) {
	tick := time.NewTicker(policyEvery)
	defer tick.Stop()
	var known map[ledger.EndedMaster]bool // nil: nothing was read yet
	for {
		list, err := r.cfg.Store.admin.EndedMasters(ctx)
		if err == nil {
			for _, one := range list {
				if known != nil && !known[one] {
					r.tellReplaced(one)
				}
			}
			known = make(map[ledger.EndedMaster]bool, len(list))
			for _, one := range list {
				known[one] = true
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *Registry) tellReplaced(one ledger.EndedMaster) {
	r.cfg.Log.Warn("the Master Key of an app was replaced: what the old one signs is refused from now on",
		"app_id", one.App.String(), "old_public_key", one.PublicKey.String(), "public_key", one.ReplacedBy.String())
	notice := events.Notice{
		Origin: r.cfg.Policy.Origin, App: one.App, Event: events.MasterKeyReplaced,
		OldKey: one.PublicKey, NewKey: one.ReplacedBy, Timestamp: one.EndedAt,
	}
	if err := r.cfg.Conn.PublishMsg(&nats.Msg{Subject: notice.Subject(), Data: notice.Sign(r.cfg.Key)}); err != nil {
		r.cfg.Log.Debug("publish a notice", "error", err) // it is only a hint
	}
}
