package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

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

// rows returns the settings as the ledger records them.
func (p Policy) rows() []ledger.Setting {
	return convert(p.settings(), func(s setting) ledger.Setting { return ledger.Setting{Name: s.name, Value: s.value} })
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
		if err := r.cfg.Store.admin.RecordPolicy(ctx, r.cfg.Policy.rows(), false); err != nil {
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
		if err := r.cfg.Store.admin.RecordPolicy(ctx, r.cfg.Policy.rows(), true); err != nil {
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
