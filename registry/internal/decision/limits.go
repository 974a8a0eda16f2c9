package decision

import (
	"cmp"
	"fmt"
	"slices"

	"omiappreg.org/keyrotation/events"
)

// The minute and the day in which changes are counted, in seconds. For the limits of an app they
// begin at whole minutes and days of UTC.
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

// refuseBeyond has a request refused for being beyond a limit, unless it is refused for another
// reason. It also marks the requests of its kind that follow in the same minute, so that the
// group is not decided again for each of them.
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

// Rules are the operator's choices that a decision depends on. Times are whole seconds; a negative
// number of something means no limit.
type Rules struct {
	Origin string // the registry's domain name
	// Grace is how long an old key stays valid after a rotation, and the most that a request may
	// ask for. Skew is the longest time between a request's timestamp and when JetStream stored
	// it.
	Grace, Skew  int64
	RequireProof events.Proofs

	RotationsPerMinute                          int // of one service
	ServicesPerApp                              int
	MasterChangesPerMinute, MasterChangesPerDay int // of one app
}

// RotatesFrom returns the second from which a service with these rotations may rotate again: a
// request that JetStream stores then is within the limit. 0 means that no limit delays it.
func (r Rules) RotatesFrom(recent []int64) int64 {
	if r.RotationsPerMinute <= 0 || len(recent) < r.RotationsPerMinute {
		return 0
	}
	times := slices.Sorted(slices.Values(recent))
	return times[len(times)-r.RotationsPerMinute] + minuteSeconds
}

// counted returns the times of a minute's rotations with one more. Without a limit, nothing is
// counted.
func (r Rules) counted(times []int64, at int64) []int64 {
	if r.RotationsPerMinute < 0 {
		return nil
	}
	return withRecent(times, at)
}

// Near reports whether two batches of at most so many requests could together pass a limit.
func (r Rules) Near(uses map[events.AppID]*AppUse, wanted []Countable, most int64) bool {
	reaches := func(limit int, used int64) bool { return limit > 0 && used+2*most > int64(limit) }
	return slices.ContainsFunc(wanted, func(one Countable) bool {
		use := uses[one.Group.Target.App]
		switch {
		case use == nil:
			return false
		case one.Outcome.Event.Sequence == 1:
			return reaches(r.ServicesPerApp, use.Services)
		}
		return reaches(r.MasterChangesPerMinute, use.MinuteChanges) || reaches(r.MasterChangesPerDay, use.DayChanges)
	})
}

// Issuer is what a decision needs to make messages. It is all that connects a decision with the
// world, so the same issuer, state, requests and time lead to the same bytes. If Parallel works
// concurrently, the services share out the nonces in any order.
type Issuer struct {
	Rules    Rules
	Key      events.SigningKey   // signs events and receipts
	NewNonce func() events.Nonce // of events and of the receipts of changes
	// Parallel calls do for each number below n and returns when all calls are done. It may call do
	// concurrently; each is how many calls are worth a goroutine.
	Parallel func(n, each int, do func(i int))
}
