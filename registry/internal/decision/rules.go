package decision

import (
	"slices"

	"omiappreg.org/keyrotation/events"
)

// Rules are the operator's choices that a decision depends on. Times are whole seconds; a negative
// number of something means no limit.
type Rules struct {
	Origin string // the registry's domain name
	// Grace is how long an old key stays valid after a rotation, and the most that a request may ask
	// for. Skew is the longest time between a request's timestamp and when JetStream stored it.
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
	return times[len(times)-r.RotationsPerMinute] + rateWindow
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
