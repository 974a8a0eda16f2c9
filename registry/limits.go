package registry

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// An app's Master Key may bind a number of services, and make a number of changes a minute and a
// day. The counts are in the database, so all replicas share them. Only what is committed counts,
// so only the holder of the Master Key can use them up.
//
//	first binding              counts as a service
//	reset, binding again       counts as a change
//	first reset in a day       counts as nothing
//	first reset since the Master Key was replaced, and each revocation
//	                           counts as nothing
//
// What counts as nothing is always allowed: a limit never delays recovery.
//
// A batch without such requests reads and writes none of this. Two replicas that decide at the same
// time may each allow the last change.

const (
	minuteSeconds = 60
	daySeconds    = 24 * 60 * 60
	// recentChanges is how far back the history is searched for a reset. An older reset is not
	// found.
	recentChanges = 1024
)

// appUse is what an app has used.
type appUse struct {
	services, minute, minuteChanges, day, dayChanges int64

	replacedAt int64 // when its Master Key was last replaced
}

// limited says why a request of the batch is beyond a limit.
type limited struct {
	reason events.Reason
	detail string
}

// limit marks requests beyond an app's limits, and decides them again. It reports whether there
// were any.
func (in *intake) limit(ctx context.Context, b *batch) (again bool, err error) {
	wanted := b.toCount()
	if len(wanted) == 0 {
		return false, nil
	}
	uses, err := in.usesOf(ctx, b.policy, wanted)
	if err != nil {
		return false, err
	}
	resets, err := in.store.lastResets(ctx, wanted)
	if err != nil {
		return false, err
	}
	beyond := b.count(wanted, uses, resets)
	b.decideAgain(beyond)
	return len(beyond) > 0, nil
}

// toCount is a change that may count.
type toCount struct {
	group   *group
	outcome *outcome
}

// toCount returns the changes of the batch that may count, in the order of the stream.
func (b *batch) toCount() (list []toCount) {
	for _, g := range b.groups {
		for i := range g.outcomes {
			o := &g.outcomes[i]
			kind := o.in.request.Kind
			if o.verdict == committed && kind.ByMasterKey() && kind != events.Revocation {
				list = append(list, toCount{g, o})
			}
		}
	}
	slices.SortFunc(list, func(a, b toCount) int { return cmp.Compare(a.outcome.in.index, b.outcome.in.index) })
	return list
}

// usesOf reads what the apps have used. A commit that is under way counts too: near a limit, usesOf
// waits for it.
func (in *intake) usesOf(ctx context.Context, policy Policy, wanted []toCount) (map[events.AppID]*appUse, error) {
	uses, err := in.store.uses(ctx, wanted)
	if err != nil || in.await == nil || !policy.near(uses, wanted) {
		return uses, err
	}
	if err := in.await(ctx); err != nil {
		return nil, err
	}
	return in.store.uses(ctx, wanted)
}

// near reports whether two batches together could pass a limit.
func (p Policy) near(uses map[events.AppID]*appUse, wanted []toCount) bool {
	reaches := func(limit int, used int64) bool { return limit > 0 && used+2*MaxBatch > int64(limit) }
	return slices.ContainsFunc(wanted, func(one toCount) bool {
		use := uses[one.group.target.App]
		switch {
		case use == nil:
			return false
		case one.outcome.event.Sequence == 1:
			return reaches(p.ServicesPerApp, use.services)
		}
		return reaches(p.MasterChangesPerMinute, use.minuteChanges) || reaches(p.MasterChangesPerDay, use.dayChanges)
	})
}

// count notes for each change whether it counts, and marks those beyond a limit. It returns their
// groups.
func (b *batch) count(wanted []toCount, uses map[events.AppID]*appUse, resets map[*group]int64) (beyond []*group) {
	for _, one := range wanted {
		g, o := one.group, one.outcome
		if _, marked := g.limited[o.in.index]; marked {
			continue // its group is decided again
		}
		use := uses[g.target.App]
		if use == nil {
			continue // the app is gone: the commit will find that out
		}
		o.counts = false
		if o.in.request.Kind == events.Reset {
			last := resets[g]
			resets[g] = o.in.storedAt
			if last <= max(o.in.storedAt-daySeconds, use.replacedAt) {
				continue
			}
		}
		why := use.take(b.policy, &o.in, o.event.Sequence == 1)
		if o.counts = why.reason == "" && o.event.Sequence > 1; why.reason == "" {
			continue
		}
		g.mark(&o.in, why)
		if !slices.Contains(beyond, g) {
			beyond = append(beyond, g)
		}
	}
	return beyond
}

// take counts a change, or returns why it can't.
func (u *appUse) take(p Policy, in *incoming, first bool) (why limited) {
	if first {
		if p.ServicesPerApp > 0 && u.services >= int64(p.ServicesPerApp) {
			return limited{events.TooManyServices, fmt.Sprintf("The app has %d services, revoked ones included, and may have no more; "+
				"the registry's operator can raise the limit (--services-per-app).", u.services)}
		}
		u.services++
		return why
	}
	if minute := in.storedAt / minuteSeconds; minute > u.minute {
		u.minute, u.minuteChanges = minute, 0
	}
	if day := in.storedAt / daySeconds; day > u.day {
		u.day, u.dayChanges = day, 0
	}
	wait := int64(0)
	if p.MasterChangesPerMinute > 0 && u.minuteChanges >= int64(p.MasterChangesPerMinute) {
		wait = (u.minute+1)*minuteSeconds - in.storedAt
	}
	if p.MasterChangesPerDay > 0 && u.dayChanges >= int64(p.MasterChangesPerDay) {
		wait = (u.day+1)*daySeconds - in.storedAt
	}
	if wait > 0 {
		return limited{events.RateLimited, fmt.Sprintf("The app's Master Key may reset and bind again %d times a minute and %d times a day, "+
			"not counting the first reset of each service in a day, and has done so; try again in %d s.",
			p.MasterChangesPerMinute, p.MasterChangesPerDay, wait)}
	}
	u.minuteChanges++
	u.dayChanges++
	return why
}

// mark has a request refused for being beyond a limit, unless it is refused for another reason. It
// also marks the requests of its kind that follow in the same minute, so that the group is not
// decided again for each of them.
func (g *group) mark(in *incoming, why limited) {
	if g.limited == nil {
		g.limited = map[int]limited{}
	}
	for i := range g.requests {
		r := &g.requests[i]
		if r.index == in.index ||
			r.index > in.index && r.request.Kind == in.request.Kind && r.storedAt/minuteSeconds == in.storedAt/minuteSeconds {
			g.limited[r.index] = why
		}
	}
}

// uses reads what apps have used.
func (s *Store) uses(ctx context.Context, wanted []toCount) (map[events.AppID]*appUse, error) {
	uses := map[events.AppID]*appUse{}
	var names []any
	seen := map[events.AppID]bool{}
	for _, one := range wanted {
		if app := one.group.target.App; once(seen, app) {
			names = append(names, app.String())
		}
	}
	const query = `SELECT a.app_id, COALESCE(u.services, 0), COALESCE(u.minute, 0), COALESCE(u.minute_changes, 0),
		COALESCE(u.day, 0), COALESCE(u.day_changes, 0),
		COALESCE((SELECT MAX(r.ended_at) FROM reserved_keys r WHERE r.app_id = a.app_id), 0)
		FROM (%s) AS v JOIN apps a ON a.app_id = v.column1 LEFT JOIN app_use u ON u.app_id = a.app_id`
	err := s.eachPart(ctx, query, []sqldb.Type{sqldb.Text}, names, func(row sqldb.Row) error {
		var app events.AppID
		use := &appUse{}
		err := row.Scan(text(&app), &use.services, &use.minute, &use.minuteChanges, &use.day, &use.dayChanges, &use.replacedAt)
		uses[app] = use
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read what apps have used: %w", err)
	}
	return uses, nil
}

// lastResets reads when the services of these changes were last reset, unless that was long ago.
func (s *Store) lastResets(ctx context.Context, wanted []toCount) (map[*group]int64, error) {
	resets := map[*group]int64{}
	byID := map[int64]*group{}
	var values []any
	for _, one := range wanted {
		g := one.group
		if one.outcome.in.request.Kind == events.Reset && g.existed && byID[g.was.id] == nil {
			byID[g.was.id] = g
			values = append(values, g.was.id, g.was.sequence-recentChanges)
		}
	}
	const query = `SELECT v.column1, COALESCE((SELECT h.committed_at FROM history h WHERE h.service = v.column1
		AND h.sequence > v.column2 AND h.event = 'MASTER_RESET' ORDER BY h.sequence DESC LIMIT 1), 0) FROM (%s) AS v`
	err := s.eachPart(ctx, query, []sqldb.Type{sqldb.Int, sqldb.Int}, values, func(row sqldb.Row) error {
		var id, at int64
		err := row.Scan(&id, &at)
		resets[byID[id]] = at
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read when services were reset: %w", err)
	}
	return resets, nil
}

// useApps counts the changes of these groups for their apps.
func (s *Store) useApps(p *sqldb.Pipeline, groups []*group) {
	uses := map[events.AppID]*appUse{}
	of := func(g *group) *appUse {
		if uses[g.target.App] == nil {
			uses[g.target.App] = &appUse{}
		}
		return uses[g.target.App]
	}
	for _, g := range groups {
		if !g.existed {
			of(g).services++
		}
		for i := range g.outcomes {
			if o := &g.outcomes[i]; o.verdict == committed && o.counts {
				_ = of(g).take(Policy{}, &o.in, false) // it was allowed
			}
		}
	}
	apps := make([]events.AppID, 0, len(uses))
	for app := range uses {
		apps = append(apps, app)
	}
	// All writers lock in this order.
	slices.SortFunc(apps, func(a, b events.AppID) int { return cmp.Compare(a.String(), b.String()) })
	values := make([]any, 0, 6*len(apps))
	for _, app := range apps {
		u := uses[app]
		values = append(values, app.String(), u.services, u.minute, u.minuteChanges, u.day, u.dayChanges)
	}
	if len(values) == 0 {
		return
	}
	const into = `INSERT INTO app_use (app_id, services, minute, minute_changes, day, day_changes) %s
		ON CONFLICT (app_id) DO UPDATE SET services = app_use.services + excluded.services,
		minute = CASE WHEN excluded.minute > app_use.minute THEN excluded.minute ELSE app_use.minute END,
		minute_changes = CASE WHEN excluded.minute < app_use.minute THEN app_use.minute_changes
			WHEN excluded.minute = app_use.minute THEN app_use.minute_changes + excluded.minute_changes ELSE excluded.minute_changes END,
		day = CASE WHEN excluded.day > app_use.day THEN excluded.day ELSE app_use.day END,
		day_changes = CASE WHEN excluded.day < app_use.day THEN app_use.day_changes
			WHEN excluded.day = app_use.day THEN app_use.day_changes + excluded.day_changes ELSE excluded.day_changes END`
	s.all(p, "count for the apps", into, []sqldb.Type{sqldb.Text, sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Int}, values, nil)
}
