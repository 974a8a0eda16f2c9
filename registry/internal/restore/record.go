package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/streams"
)

// record writes chains to the database, with their receipts: all in one transaction or, if they
// don't fit together, each in its own.
func (r *recoverer) record(ctx context.Context, chains []*chain) error {
	receipts, err := r.receipts(ctx, chains)
	if err != nil {
		return err
	}
	slices.SortFunc(chains, func(a, b *chain) int { return compareTargets(a.group.Target, b.group.Target) })
	err = r.recordTogether(ctx, chains, receipts)
	if !errors.Is(err, ledger.ErrTaken) {
		return err
	}
	for _, c := range chains {
		err := r.recordTogether(ctx, []*chain{c}, receipts)
		if errors.Is(err, ledger.ErrTaken) {
			r.report.Conflicts = append(r.report.Conflicts, Conflict{
				c.group.Target.String(), c.events[0].event.Sequence,
				"the database has changed meanwhile, or has this request's nonce with another change; run it again",
			})
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// recordTogether writes chains in one transaction, or returns [ledger.ErrTaken].
func (r *recoverer) recordTogether(ctx context.Context, chains []*chain, receipts map[events.Nonce]heardReceipt) error {
	var rows []ledger.HistoryRow
	groups := make([]*decision.Group, 0, len(chains))
	standIns := 0
	for _, c := range chains {
		groups = append(groups, c.group)
		for i := range c.events {
			event := c.events[i].event
			heard, ok := receipts[event.Nonce]
			if !ok {
				heard = r.standIn(&event)
				standIns++
			}
			rows = append(rows, ledger.HistoryRow{
				Event: event, RequestNonce: heard.receipt.RequestNonce, Digest: decision.UnknownDigest(),
				ReceiptNonce: heard.receipt.Nonce, Receipt: heard.payload,
			})
		}
	}
	if !r.how.DryRun {
		if err := r.how.Admin.ContinueHistories(ctx, groups, rows); err != nil {
			return err
		}
	}
	for _, g := range groups {
		r.touched[g.Target] = nil
		if r.how.DryRun {
			r.touched[g.Target] = &g.Service
		}
		r.apps[g.Target.App] = true
	}
	for _, c := range chains {
		for i := range c.events {
			r.signed(&c.events[i])
		}
	}
	r.report.WithoutReceipt += standIns
	r.progress(len(rows))
	return nil
}

// heardReceipt is a receipt as it was published.
type heardReceipt struct {
	receipt events.Receipt
	payload []byte
}

// receipts reads the receipts of the chains' events, by the events' nonces, if their stream still
// has them.
func (r *recoverer) receipts(ctx context.Context, chains []*chain) (map[events.Nonce]heardReceipt, error) {
	heard := map[events.Nonce]heardReceipt{}
	wanted := map[events.Nonce]*events.Invalidation{}
	var subjects []string
	for _, c := range chains {
		subjects = append(subjects, events.ReceiptSubject+c.group.Target.String())
		for i := range c.events {
			wanted[c.events[i].event.Nonce] = &c.events[i].event
		}
	}
	stream, err := r.how.JetStream.Stream(ctx, streams.Receipts)
	if err != nil {
		return nil, fmt.Errorf("look at the stream %s: %w", streams.Receipts, err)
	}
	if stream.CachedInfo().State.Msgs == 0 {
		return heard, nil // asking for so many subjects is work for the broker
	}
	err = reading{stream: stream, filters: subjects, each: func(_ context.Context, batch []streamMessage) error {
		for _, m := range batch {
			receipt, err := r.how.Trust.At(m.stored, 0).Receipt(m.subject, m.payload)
			if err != nil || receipt.Event != events.RequestCommitted || receipt.RequestNonce.IsZero() {
				continue
			}
			if e := wanted[receipt.EventNonce]; e != nil && receipt.Target == e.Target && receipt.Sequence == e.Sequence {
				heard[receipt.EventNonce] = heardReceipt{receipt, m.payload}
			}
		}
		return nil
	}}.read(ctx)
	if err != nil {
		return nil, err
	}
	return heard, nil
}

// standIn makes a receipt for an event whose own receipt is gone. The event's nonce stands for the
// request's: no request has it.
func (r *recoverer) standIn(e *events.Invalidation) heardReceipt {
	receipt := events.Receipt{
		Origin: r.how.Trust.Origin(), Target: e.Target, Event: events.RequestCommitted,
		RequestNonce: e.Nonce, Timestamp: e.Timestamp, Nonce: events.NewNonce(),
		Sequence: e.Sequence, PublicKey: e.NewKey, GracePeriodExpiry: e.GracePeriodExpiry, EventNonce: e.Nonce,
	}
	return heardReceipt{receipt, receipt.Sign(r.how.Key)}
}

// Signer is a key of the registry whose signatures recovered changes rest on.
type Signer struct {
	PublicKey events.PublicKey
	Earlier   bool // the registry no longer signs with it
	Changes   int
	Newest    []SignedChange // the last of these changes in the stream, up to a limit
}

// SignedChange is a recovered change, and the place of its event.
type SignedChange struct {
	Target   string
	Sequence int64
	Event    events.EventKind
	StoredAt time.Time
	Place    uint64
}

// newestOfSigner is how many changes are listed for each key.
const newestOfSigner = 1000

// signed notes whose signature a change rests on.
func (r *recoverer) signed(e *streamEvent) {
	list := &r.report.Signers
	i := slices.IndexFunc(*list, func(s Signer) bool { return s.PublicKey == e.signer })
	if i < 0 {
		i = len(*list)
		*list = append(*list, Signer{PublicKey: e.signer, Earlier: e.signer != r.how.Key.Public()})
	}
	s := &(*list)[i]
	s.Changes++
	if s.Newest = append(s.Newest, SignedChange{
		e.event.Target.String(), e.event.Sequence, e.event.Event, e.stored.UTC(), e.place,
	}); len(s.Newest) == 2*newestOfSigner {
		s.Newest = slices.Clone(s.Newest[newestOfSigner:])
	}
}

// trim keeps the last changes in the stream.
func (s *Signer) trim() {
	slices.SortStableFunc(s.Newest, func(a, b SignedChange) int { return a.StoredAt.Compare(b.StoredAt) })
	s.Newest = s.Newest[max(0, len(s.Newest)-newestOfSigner):]
}
