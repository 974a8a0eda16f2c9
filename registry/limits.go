package registry

import (
	"context"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
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

// limit marks requests beyond an app's limits, and decides them again. It reports whether there
// were any.
func (in *intake) limit(ctx context.Context, b *decision.Batch) (again bool, err error) {
	wanted := b.Countable()
	if len(wanted) == 0 {
		return false, nil
	}
	uses, err := in.usesOf(ctx, in.policy.rules(), wanted)
	if err != nil {
		return false, err
	}
	resets, err := in.store.ledger.LastResets(ctx, wanted)
	if err != nil {
		return false, err
	}
	beyond := b.ApplyLimits(wanted, uses, resets)
	b.DecideAgain(beyond)
	return len(beyond) > 0, nil
}

// usesOf reads what the apps have used. A commit that is under way counts too: near a limit, usesOf
// waits for it.
func (in *intake) usesOf(ctx context.Context, rules decision.Rules, wanted []decision.Countable) (map[events.AppID]*decision.AppUse, error) {
	uses, err := in.store.ledger.Uses(ctx, wanted)
	if err != nil || in.await == nil || !rules.Near(uses, wanted, MaxBatch) {
		return uses, err
	}
	if err := in.await(ctx); err != nil {
		return nil, err
	}
	return in.store.ledger.Uses(ctx, wanted)
}
