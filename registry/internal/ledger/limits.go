package ledger

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// recentChanges is how far back the history is searched for a reset. An older reset is not found.
const recentChanges = 1024

// Uses reads what apps have used.
func (s *Ledger) Uses(ctx context.Context, wanted []decision.Countable) (map[events.AppID]*decision.AppUse, error) {
	uses := map[events.AppID]*decision.AppUse{}
	var names []any
	seen := map[events.AppID]bool{}
	for _, one := range wanted {
		if app := one.Group.Target.App; once(seen, app) {
			names = append(names, app.String())
		}
	}
	const query = `SELECT a.app_id, COALESCE(u.services, 0), COALESCE(u.minute, 0), COALESCE(u.minute_changes, 0),
		COALESCE(u.day, 0), COALESCE(u.day_changes, 0),
		COALESCE((SELECT MAX(r.ended_at) FROM reserved_keys r WHERE r.app_id = a.app_id), 0)
		FROM (%s) AS v JOIN apps a ON a.app_id = v.column1 LEFT JOIN app_use u ON u.app_id = a.app_id`
	err := s.eachPart(ctx, query, []sqldb.Type{sqldb.Text}, names, func(row sqldb.Row) error {
		var app events.AppID
		use := &decision.AppUse{}
		err := row.Scan(text(&app), &use.Services, &use.Minute, &use.MinuteChanges, &use.Day, &use.DayChanges, &use.ReplacedAt)
		uses[app] = use
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read what apps have used: %w", err)
	}
	return uses, nil
}

// LastResets reads when the services of these changes were last reset, unless that was long ago.
func (s *Ledger) LastResets(ctx context.Context, wanted []decision.Countable) (map[*decision.Group]int64, error) {
	resets := map[*decision.Group]int64{}
	byID := map[int64]*decision.Group{}
	var values []any
	for _, one := range wanted {
		g := one.Group
		if one.Outcome.In.Request.Kind == events.Reset && g.Existed && byID[g.Was.ID] == nil {
			byID[g.Was.ID] = g
			values = append(values, g.Was.ID, g.Was.Sequence-recentChanges)
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
func (s tables) useApps(p *sqldb.Pipeline, groups []*decision.Group) {
	uses := map[events.AppID]*decision.AppUse{}
	of := func(g *decision.Group) *decision.AppUse {
		if uses[g.Target.App] == nil {
			uses[g.Target.App] = &decision.AppUse{}
		}
		return uses[g.Target.App]
	}
	for _, g := range groups {
		if !g.Existed {
			of(g).Services++
		}
		for i := range g.Outcomes {
			if o := &g.Outcomes[i]; o.Verdict == decision.Committed && o.Counts {
				_ = of(g).Count(decision.Rules{}, &o.In, false) // it was allowed
			}
		}
	}
	values := make([]any, 0, 6*len(uses))
	// All writers lock in this order.
	for _, app := range slices.SortedFunc(maps.Keys(uses), func(a, b events.AppID) int { return cmp.Compare(a.String(), b.String()) }) {
		u := uses[app]
		values = append(values, app.String(), u.Services, u.Minute, u.MinuteChanges, u.Day, u.DayChanges)
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
