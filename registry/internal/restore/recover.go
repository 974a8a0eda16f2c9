package restore

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// Recovery says how to recover changes that a database lacks. All members except DryRun and UpTo
// are required.
type Recovery struct {
	Ledger    *ledger.Ledger // with which the stream is compared
	Unhurried *ledger.Ledger // without limits of time
	Admin     *ledger.Admin  // the same
	JetStream jetstream.JetStream
	Trust     events.Trust      // whose events and receipts are believed: the registry's own keys
	Key       events.SigningKey // signs stand-ins for receipts that are gone
	DryRun    bool              // reads and reports, but writes nothing
	UpTo      uint64            // ignores what the stream of events has behind this place; 0: nothing
	Log       *slog.Logger
}

// Recovered is what [Recover] did, and what it could not do. The registry's type of this name
// explains the members.
type Recovered struct {
	DryRun                            bool
	Messages, Changes, Services       int
	WithoutReceipt, Refused, AfterEnd int
	UpTo                              uint64
	Signers                           []Signer
	UnknownApps                       []events.AppID
	Gaps                              []Gap
	Conflicts, IssuedTwice            []Conflict
}

// Gap is a service whose history can't be continued from the stream.
type Gap struct {
	Target          string
	Has, Next, Last int64 // sequences: the last in the database, the next and the last in the stream
}

// Conflict is an event that can't become part of the history.
type Conflict struct {
	Target   string
	Sequence int64
	What     string
}

// Recover restores changes that the database lacks, from the stream of events and, if they are
// still kept, the receipts. The registry's Admin.Recover says what stands in for what is gone.
func Recover(ctx context.Context, how Recovery) (Recovered, error) {
	r := &recoverer{
		how: how, waiting: map[events.Target][]streamEvent{}, touched: map[events.Target]*decision.Service{},
		apps: map[events.AppID]bool{}, report: Recovered{DryRun: how.DryRun},
	}
	stream, err := invalidations(ctx, how.JetStream)
	if err != nil {
		return r.report, err
	}
	r.report.UpTo = stream.CachedInfo().State.LastSeq
	if how.UpTo > 0 {
		r.report.UpTo = min(r.report.UpTo, how.UpTo)
	}
	if err := (comparison{how.Ledger, how.Trust, how.Log, r.take, how.UpTo}).run(ctx, stream, 1); err != nil {
		return r.report, fmt.Errorf("recover: %w", err)
	}
	if err := r.finish(ctx); err != nil {
		return r.report, fmt.Errorf("recover: %w", err)
	}
	return r.report, nil
}

// recoverer goes through the stream. Events mostly come in the order of their sequences; an event
// that comes before its predecessor waits for it.
type recoverer struct {
	how     Recovery
	report  Recovered
	waiting map[events.Target][]streamEvent
	// touched: services with recovered changes; in a dry run as they would be, otherwise nil.
	touched map[events.Target]*decision.Service
	apps    map[events.AppID]bool // the apps of these services
}

// take recovers the changes in a part of the stream.
func (r *recoverer) take(ctx context.Context, c compared, batch []streamMessage) error {
	r.report.Messages += len(batch)
	r.report.Refused += c.refused
	r.report.AfterEnd += c.ended
	for _, e := range c.twice {
		r.issuedTwice(e.event)
	}
	targets := map[events.Target]bool{}
	for _, e := range c.lacking {
		r.waiting[e.event.Target] = append(r.waiting[e.event.Target], e)
		targets[e.event.Target] = true
	}
	if len(targets) == 0 {
		return nil
	}
	return r.write(ctx, slices.Collect(maps.Keys(targets)))
}

func (r *recoverer) issuedTwice(e events.Invalidation) {
	r.report.IssuedTwice = append(r.report.IssuedTwice, Conflict{
		e.Target.String(), e.Sequence,
		"the stream has another event of this sequence than the database; Master Resets (omi reset) beyond the last sequence that was issued resolve it",
	})
}

// chain is the events that continue the history of one service.
type chain struct {
	group  *decision.Group
	events []streamEvent
}

// write continues the histories of these services with the waiting events that fit.
func (r *recoverer) write(ctx context.Context, targets []events.Target) error {
	services, err := r.how.Unhurried.Services(ctx, targets)
	if err != nil {
		return err
	}
	owners, err := r.owners(ctx, targets)
	if err != nil {
		return err
	}
	var chains []*chain
	for _, t := range targets {
		if c := r.continueHistory(t, services[t], owners); len(c.events) > 0 {
			chains = append(chains, c)
		}
	}
	if len(chains) == 0 {
		return nil
	}
	return r.record(ctx, chains)
}

// owners returns the services that already have the keys of the waiting events.
func (r *recoverer) owners(ctx context.Context, targets []events.Target) (map[events.PublicKey]events.Target, error) {
	var keys []events.PublicKey
	for _, t := range targets {
		for _, e := range r.waiting[t] {
			if !e.event.NewKey.IsZero() {
				keys = append(keys, e.event.NewKey)
			}
		}
	}
	return r.how.Admin.Owners(ctx, keys)
}

// continueHistory takes the waiting events that follow the service's state, one after the other.
func (r *recoverer) continueHistory(t events.Target, have *decision.Service, owners map[events.PublicKey]events.Target) *chain {
	g := &decision.Group{Target: t}
	if would := r.touched[t]; would != nil { // in a dry run
		have = would
	}
	if have != nil {
		g.Was, g.Existed, g.Service = *have, true, *have
	}
	c := &chain{group: g}
	list := r.waiting[t]
	slices.SortStableFunc(list, func(a, b streamEvent) int { return cmp.Compare(a.event.Sequence, b.event.Sequence) })
	var rest []streamEvent
	for _, e := range list {
		_, taken := owners[e.event.NewKey]
		switch s := &g.Service; {
		case e.event.Sequence == s.Sequence+1 && e.event.OldKey == s.Key && !taken:
			g.Follow(&e.event)
			c.events = append(c.events, e)
		case e.event.Sequence > s.Sequence:
			rest = append(rest, e)
		case len(c.events) > 0 && !slices.ContainsFunc(c.events, func(o streamEvent) bool { return o.event.Nonce == e.event.Nonce }):
			r.issuedTwice(e.event)
		}
	}
	if r.waiting[t] = rest; len(rest) == 0 {
		delete(r.waiting, t)
	}
	return c
}

// finish lists what could not be recovered.
func (r *recoverer) finish(ctx context.Context) error {
	for targets := range slices.Chunk(slices.SortedFunc(maps.Keys(r.waiting), compareTargets), servicesAtOnce) {
		services, err := r.how.Unhurried.Services(ctx, targets)
		if err != nil {
			return err
		}
		owners, err := r.owners(ctx, targets)
		if err != nil {
			return err
		}
		for _, t := range targets {
			has := int64(0)
			if s := services[t]; s != nil {
				has = s.Sequence
			}
			if would := r.touched[t]; would != nil {
				has = would.Sequence
			}
			r.remains(t, has, owners)
		}
	}
	apps, err := r.how.Admin.Apps(ctx)
	if err != nil {
		return err
	}
	for _, app := range apps {
		delete(r.apps, app.AppID)
	}
	r.report.UnknownApps = slices.AppendSeq(r.report.UnknownApps, maps.Keys(r.apps))
	slices.SortFunc(r.report.UnknownApps, func(a, b events.AppID) int { return cmp.Compare(a.String(), b.String()) })
	r.report.Services = len(r.touched)
	for i := range r.report.Signers {
		r.report.Signers[i].trim()
	}
	return nil
}

// remains finds out why the events of a service still wait.
func (r *recoverer) remains(t events.Target, has int64, owners map[events.PublicKey]events.Target) {
	list := slices.DeleteFunc(r.waiting[t], func(e streamEvent) bool { return e.event.Sequence <= has })
	if len(list) == 0 {
		return // another process was faster
	}
	first, last := &list[0].event, &list[len(list)-1].event
	if first.Sequence > has+1 {
		r.report.Gaps = append(r.report.Gaps, Gap{t.String(), has, first.Sequence, last.Sequence})
		return
	}
	what := fmt.Sprintf("it does not follow from the database's history, which has continued differently; "+
		"Master Resets (omi reset) until the sequence is beyond %d resolve it", last.Sequence)
	if owner, ok := owners[first.NewKey]; ok {
		what = fmt.Sprintf("its key is registered for %s in the database", owner)
	}
	r.report.Conflicts = append(r.report.Conflicts, Conflict{t.String(), first.Sequence, what})
}

func compareTargets(a, b events.Target) int { return cmp.Compare(a.String(), b.String()) }

// progress counts changes and logs the count now and then.
func (r *recoverer) progress(changes int) {
	before := r.report.Changes
	r.report.Changes += changes
	const every = 10_000
	if before/every != r.report.Changes/every {
		r.how.Log.Info("recovered changes", "changes", r.report.Changes, "services", len(r.touched))
	}
}
