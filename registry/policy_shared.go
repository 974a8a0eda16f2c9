package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
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

// CheckPolicy returns [ErrOtherPolicy] with each setting that differs if the database records
// another policy. It changes nothing. A database without a record has no other policy.
func (s *Store) CheckPolicy(ctx context.Context, p Policy) error {
	p, err := p.WithDefaults()
	if err != nil {
		return err
	}
	recorded, err := s.policy(ctx)
	if err != nil {
		return err
	}
	return p.mustBe(recorded)
}

// AwaitPolicy is [Store.CheckPolicy] for a process that starts: it waits while the database is
// unavailable.
func (s *Store) AwaitPolicy(ctx context.Context, p Policy, log *slog.Logger) error {
	return sqldb.Await(ctx, log, func() error { return s.CheckPolicy(ctx, p) })
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

// policy reads the recorded policy.
func (s *Store) policy(ctx context.Context) (map[string]string, error) {
	recorded := map[string]string{}
	err := s.db.Read(ctx, func() error {
		return s.each(ctx, "SELECT name, value FROM policy", nil, func(row sqldb.Row) error {
			var name, value string
			err := row.Scan(&name, &value)
			recorded[name] = value
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	return recorded, nil
}

// recordPolicy records the settings that are not recorded yet, in one statement: if two replicas
// start at once, one of them is first. With change, it records all settings.
func (s *Store) recordPolicy(ctx context.Context, p Policy, change bool) error {
	then := "NOTHING"
	if change {
		then = "UPDATE SET value = excluded.value"
	}
	settings := p.settings()
	places, values := make([]string, len(settings)), make([]any, 0, 2*len(settings))
	for i, one := range settings {
		places[i] = fmt.Sprintf("($%d, $%d)", 2*i+1, 2*i+2)
		values = append(values, one.name, one.value)
	}
	query := "INSERT INTO policy (name, value) VALUES " + strings.Join(places, ", ") + " ON CONFLICT (name) DO " + then
	if err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, values...)
		return err
	}); err != nil {
		return fmt.Errorf("record the policy: %w", err)
	}
	return nil
}

// agreeOnPolicy records this policy if it is the first on this database, and returns
// [ErrOtherPolicy] if another one is recorded.
func (r *Registry) agreeOnPolicy(ctx context.Context) error {
	return sqldb.Await(ctx, r.cfg.Log, func() error {
		if err := r.cfg.Store.recordPolicy(ctx, r.cfg.Policy, false); err != nil {
			return err
		}
		return r.cfg.Store.CheckPolicy(ctx, r.cfg.Policy)
	})
}

// changePolicy replaces the recorded policy by this registry's, and logs the differences.
func (r *Registry) changePolicy(ctx context.Context) error {
	return sqldb.Await(ctx, r.cfg.Log, func() error {
		recorded, err := r.cfg.Store.policy(ctx)
		if err != nil {
			return err
		}
		if err := r.cfg.Store.recordPolicy(ctx, r.cfg.Policy, true); err != nil {
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
		recorded, err := r.cfg.Store.policy(ctx)
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
