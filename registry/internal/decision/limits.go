package decision

import (
	"cmp"
	"fmt"
	"slices"

	"omiappreg.org/keyrotation/events"
)

// The minute and the day in which changes are counted, in seconds. They begin at whole minutes and
// days of UTC.
const (
	minuteSeconds = 60
	DaySeconds    = 24 * 60 * 60
)

// AppUse is what an app has used.
type AppUse struct {
	Services      int64 // bound at any time
	Minute, Day   int64 // the last ones with a change, counted from the Unix epoch
	MinuteChanges int64 // by the Master Key in that minute,
	DayChanges    int64 // and in that day
	ReplacedAt    int64 // when its Master Key was last replaced, seconds since the Unix epoch
}

// overLimit says why a request of the batch is beyond a limit.
type overLimit struct {
	reason events.Reason
	detail string
}

// Countable is a change that may count towards a limit of its app.
type Countable struct {
	Group   *Group
	Outcome *Outcome
}

// Countable returns the changes of the batch that may count, in the order of the stream.
func (b *Batch) Countable() (list []Countable) {
	for _, g := range b.Groups {
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			kind := o.In.Request.Kind
			if o.Verdict == Committed && kind.ByMasterKey() && kind != events.Revocation {
				list = append(list, Countable{g, o})
			}
		}
	}
	slices.SortFunc(list, func(a, b Countable) int { return cmp.Compare(a.Outcome.In.Index, b.Outcome.In.Index) })
	return list
}

// ApplyLimits notes for each change whether it counts, and marks those beyond a limit. It returns
// their groups, which the caller decides again. resets is when each group's service was last reset.
func (b *Batch) ApplyLimits(wanted []Countable, uses map[events.AppID]*AppUse, resets map[*Group]int64) (beyond []*Group) {
	for _, one := range wanted {
		g, o := one.Group, one.Outcome
		if _, marked := g.beyondLimit[o.In.Index]; marked {
			continue // its group is decided again
		}
		use := uses[g.Target.App]
		if use == nil {
			continue // the app is gone: the commit will find that out
		}
		o.Counts = false
		if o.In.Request.Kind == events.Reset {
			last := resets[g]
			resets[g] = o.In.StoredAt
			if last <= max(o.In.StoredAt-DaySeconds, use.ReplacedAt) {
				continue
			}
		}
		why := use.Count(b.issuer.Rules, &o.In, o.Event.Sequence == 1)
		if o.Counts = why.reason == "" && o.Event.Sequence > 1; why.reason == "" {
			continue
		}
		g.refuseBeyond(&o.In, why)
		if !slices.Contains(beyond, g) {
			beyond = append(beyond, g)
		}
	}
	return beyond
}

// Count counts a change, or returns why it can't.
func (u *AppUse) Count(p Rules, in *Incoming, first bool) (why overLimit) {
	if first {
		if p.ServicesPerApp > 0 && u.Services >= int64(p.ServicesPerApp) {
			return overLimit{events.TooManyServices, fmt.Sprintf("The app has %d services, revoked ones included, and may have no more; "+
				"the registry's operator can raise the limit (--services-per-app).", u.Services)}
		}
		u.Services++
		return why
	}
	if minute := in.StoredAt / minuteSeconds; minute > u.Minute {
		u.Minute, u.MinuteChanges = minute, 0
	}
	if day := in.StoredAt / DaySeconds; day > u.Day {
		u.Day, u.DayChanges = day, 0
	}
	wait := int64(0)
	if p.MasterChangesPerMinute > 0 && u.MinuteChanges >= int64(p.MasterChangesPerMinute) {
		wait = (u.Minute+1)*minuteSeconds - in.StoredAt
	}
	if p.MasterChangesPerDay > 0 && u.DayChanges >= int64(p.MasterChangesPerDay) {
		wait = (u.Day+1)*DaySeconds - in.StoredAt
	}
	if wait > 0 {
		return overLimit{events.RateLimited, fmt.Sprintf("The app's Master Key may reset and bind again %d times a minute and %d times a day, "+
			"not counting the first reset of each service in a day, and has done so; try again in %d s.",
			p.MasterChangesPerMinute, p.MasterChangesPerDay, wait)}
	}
	u.MinuteChanges++
	u.DayChanges++
	return why
}

// refuseBeyond has a request refused for being beyond a limit, unless it is refused for another reason. It
// also marks the requests of its kind that follow in the same minute, so that the group is not
// decided again for each of them.
func (g *Group) refuseBeyond(in *Incoming, why overLimit) {
	if g.beyondLimit == nil {
		g.beyondLimit = map[int]overLimit{}
	}
	for i := range g.Requests {
		r := &g.Requests[i]
		if r.Index == in.Index ||
			r.Index > in.Index && r.Request.Kind == in.Request.Kind && r.StoredAt/minuteSeconds == in.StoredAt/minuteSeconds {
			g.beyondLimit[r.Index] = why
		}
	}
}
