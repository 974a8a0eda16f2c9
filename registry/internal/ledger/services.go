package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// ChangeID is a place in the history of one service.
type ChangeID struct {
	Target   events.Target
	Sequence int64
}

// noncesOf finds services by the unique index of services (target), and their changes by the
// primary key of history (service, sequence).
func noncesOf(e sqldb.Engine) string {
	return `SELECT s.target, h.sequence, h.event_nonce FROM (%s) AS v ` + e.LookupJoin() + ` services s ON s.target = v.column1
		` + e.LookupJoin() + ` history h ON h.service = s.id AND h.sequence = v.column2`
}

// Nonces reads the nonces that the history has at these places. It ignores places without a
// sequence.
func (s tables) Nonces(ctx context.Context, list []ChangeID) (map[ChangeID]events.Nonce, error) {
	known := make(map[ChangeID]events.Nonce, len(list))
	var args []any
	for _, c := range list {
		if c.Sequence > 0 {
			args = append(args, c.Target.String(), c.Sequence)
		}
	}
	query := noncesOf(s.db.Engine())
	err := s.eachPartAgain(ctx, query, []sqldb.Type{sqldb.Text, sqldb.Int}, args, func(row sqldb.Row) error {
		var at ChangeID
		var nonce events.Nonce
		err := row.Scan(target(&at.Target), &at.Sequence, nonceText(&nonce))
		known[at] = nonce
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	return known, nil
}

// Services reads the present state of services. A service that the database does not have is nil.
func (s *Ledger) Services(ctx context.Context, targets []events.Target) (map[events.Target]*decision.Service, error) {
	st, w := decision.NewState(), newWantedServices(len(targets))
	for _, t := range targets {
		w.service(t)
	}
	if err := s.read(ctx, func(p *sqldb.Pipeline) { s.queryServices(p, w, st) }); err != nil {
		return nil, fmt.Errorf("read the state of services: %w", err)
	}
	return st.Services, nil
}

// boundOf finds services by the unique index of services (target).
func boundOf(e sqldb.Engine) string {
	return "SELECT target FROM (%s) AS v " + e.LookupJoin() + " services ON target = v.column1"
}

// Bound returns those of the services that were ever bound. It reads nothing but their names.
func (s *Ledger) Bound(ctx context.Context, targets []events.Target) ([]events.Target, error) {
	w := newWantedServices(len(targets))
	for _, t := range targets {
		w.service(t)
	}
	bound := make([]events.Target, 0, len(targets))
	err := s.eachPartAgain(ctx, boundOf(s.db.Engine()), []sqldb.Type{sqldb.Text}, w.names, func(row sqldb.Row) error {
		var name string
		err := row.Scan(&name)
		bound = append(bound, w.targets[name])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask which services are bound: %w", err)
	}
	return bound, nil
}

// Masters reads the Master Keys of apps. An app that the registry does not know is not in the
// result.
func (s *Ledger) Masters(ctx context.Context, apps []events.AppID) (map[events.AppID]events.PublicKey, error) {
	st, w := decision.NewState(), newWantedServices(0)
	seen := make(map[events.AppID]bool, len(apps))
	for _, app := range apps {
		if once(seen, app) {
			w.apps = append(w.apps, app.String())
		}
	}
	if err := s.read(ctx, func(p *sqldb.Pipeline) { s.queryApps(p, w, st) }); err != nil {
		return nil, fmt.Errorf("read the Master Keys of apps: %w", err)
	}
	return st.Masters, nil
}

// Owners returns the services that have or had these keys.
func (s *Admin) Owners(ctx context.Context, keys []events.PublicKey) (map[events.PublicKey]events.Target, error) {
	values := make([]any, len(keys))
	for i := range keys {
		values[i] = keys[i].Bytes()
	}
	owners := map[events.PublicKey]events.Target{}
	const query = "SELECT h.public_key, s.target FROM history h JOIN services s ON s.id = h.service WHERE h.public_key IN (%s)"
	err := s.eachPartAgain(ctx, query, []sqldb.Type{sqldb.Bytes}, values, func(row sqldb.Row) error {
		var key events.PublicKey
		var owner events.Target
		err := row.Scan(keyColumn{&key}, target(&owner))
		owners[key] = owner
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the owners of keys: %w", err)
	}
	return owners, nil
}

// ContinueHistories moves services by compare-and-swap, and appends to their histories; all, or
// [ErrTaken].
func (s *Admin) ContinueHistories(ctx context.Context, groups []*decision.Group, rows []HistoryRow) error {
	sortForLocks(groups)
	err := s.write(ctx, func(tx *sqldb.Tx) error {
		lost := make(map[events.Target]bool, len(groups))
		if err := s.moveServices(ctx, tx, groups, lost); err != nil {
			return err
		}
		if len(lost) > 0 {
			return ErrTaken
		}
		ids := make(map[events.Target]int64, len(groups))
		for _, g := range groups {
			ids[g.Target] = g.Service.ID
		}
		for i := range rows {
			rows[i].service = ids[rows[i].Event.Target]
		}
		var p sqldb.Pipeline
		s.appendHistory(&p, rows, "%s")
		s.useApps(&p, groups)
		return tx.RunAtCommit(ctx, &p)
	})
	if err != nil {
		return fmt.Errorf("write recovered changes: %w", err)
	}
	return nil
}

// TargetOf returns the service in the subject of an event; zero: there is none.
func TargetOf(subject string) events.Target {
	name, _ := strings.CutPrefix(subject, events.InvalidationSubject)
	if t, err := events.ParseTarget(name); err == nil {
		return t
	}
	return events.Target{}
}

// ChangeOf returns which change a message of the stream of events says it is about, and the nonce
// of its event. The target is zero if the subject names no service. Nothing is verified.
func ChangeOf(subject string, payload []byte) (id ChangeID, nonce events.Nonce) {
	if id.Target = TargetOf(subject); !id.Target.IsZero() {
		id.Sequence, nonce = events.NamesOf(payload)
	}
	return id, nonce
}

// Errors of a question about what the database does not have.
var (
	ErrUnknownService = errors.New("unknown service")
	ErrNoReceipt      = errors.New("no receipt of this request")
)

// Record is everything that the database keeps of a service.
type Record struct {
	decision.Service
	decision.Details
}

// Service reads one service, or returns [ErrUnknownService].
func (s *Ledger) Service(ctx context.Context, t events.Target) (*Record, error) {
	var one Record
	const query = "SELECT " + serviceColumns + ", bound_at, service_type, endpoint_url, provider_receipt FROM services WHERE target = $1"
	err := s.db.QueryRow(ctx, query, t.String()).
		Scan(append(columnsOf(&one.Service), &one.BoundAt, &one.ServiceType, &one.EndpointURL, &one.ProviderReceipt)...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrUnknownService
	}
	if err != nil {
		return nil, fmt.Errorf("read the service %s: %w", t, err)
	}
	return &one, nil
}

// Owner returns the service that has or had a key, and the sequence that brought the key, or
// [sql.ErrNoRows].
func (s *Ledger) Owner(ctx context.Context, key events.PublicKey) (t events.Target, sequence int64, err error) {
	const query = `SELECT s.target, h.sequence FROM history h JOIN services s ON s.id = h.service
		WHERE h.public_key = $1`
	err = s.db.QueryRow(ctx, query, key.Bytes()).Scan(target(&t), &sequence)
	return t, sequence, err
}

// Receipt reads the receipt of a committed request, or returns [ErrNoReceipt].
func (s *Ledger) Receipt(ctx context.Context, t events.Target, nonce events.Nonce) (receipt []byte, err error) {
	const query = "SELECT receipt FROM history WHERE service = (SELECT id FROM services WHERE target = $1) AND request_nonce = $2"
	err = s.db.QueryRow(ctx, query, t.String(), nonce.String()).Scan(&receipt)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNoReceipt
	}
	if err != nil {
		return nil, fmt.Errorf("read the receipt of a request of %s: %w", t, err)
	}
	return receipt, nil
}

// fewChanges is how many changes are read at a time if it is not known how many are needed.
const fewChanges = 64

// Lines returns the keys that a service had after a sequence, oldest first, and whether it had
// more. It ignores changes that come meanwhile: a history only grows.
func (s *Ledger) Lines(
	ctx context.Context, one *decision.Service, after, most int64,
) (lines []events.HistoryKey, more bool, err error) {
	// At least one of two changes brings a key: a revocation is followed by a binding.
	end := min(one.Sequence, after+max(most, 2))
	changes, err := s.changes(ctx, one.ID, after, end)
	if err != nil {
		return nil, false, err
	}
	// It depends on whether the last of them brought a key or ended what there was.
	more = one.Sequence > end+1 || one.Sequence == end+1 && one.Active()
	within := len(changes)
	if changes, err = s.withEnds(ctx, one, changes, end); err != nil {
		return nil, false, err
	}
	lines = decision.HistoryLines(changes, within)
	if int64(len(lines)) > most {
		lines, more = lines[:most], true
	}
	return lines, more, nil
}

// withEnds adds the changes that may still end one of the keys before them: up to the first change
// that ends all of them, or that came when all of them had ended.
func (s tables) withEnds(
	ctx context.Context, one *decision.Service, changes []events.Invalidation, end int64,
) ([]events.Invalidation, error) {
	latest := int64(0)
	for i := range changes {
		latest = max(latest, changes[i].GracePeriodExpiry)
	}
	for first := true; end < one.Sequence && len(changes) > 0; first = false {
		to := min(one.Sequence, end+fewChanges)
		next, err := s.changes(ctx, one.ID, end, to)
		if err != nil {
			return nil, err
		}
		for i := range next {
			e := &next[i]
			if first && i == 0 {
				latest = max(latest, e.GracePeriodExpiry) // the end of the last key
			}
			changes = append(changes, *e)
			if e.EndsEarlierKeys() || e.Timestamp >= latest {
				return changes, nil
			}
		}
		end = to
	}
	return changes, nil
}

// changes reads the changes of a service after one sequence, up to another, in their order.
func (s tables) changes(ctx context.Context, id, after, upTo int64) ([]events.Invalidation, error) {
	list := make([]events.Invalidation, 0, max(0, upTo-after))
	err := s.each(ctx, ChangesQuery, []any{id, after, upTo}, func(row sqldb.Row) error {
		var e events.Invalidation
		var endEarlier int64
		err := row.Scan(&e.Sequence, &e.Event, keyColumn{&e.OldKey}, keyColumn{&e.NewKey},
			&e.GracePeriodExpiry, &e.Timestamp, &endEarlier)
		e.EndEarlier = endEarlier == 1
		list = append(list, e)
		return err
	})
	return list, err
}

// ChangesQuery reads no more rows than there are sequences between the two, whatever plan the
// database chooses.
const ChangesQuery = `SELECT sequence, event, old_public_key, public_key, grace_period_expiry, committed_at,
	end_earlier FROM history WHERE service = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence`

// InGrace returns the keys that are in grace at now, newest first, as the history was when the
// service was read: it only grows, so a later change does not mix into the answer. It goes back
// until a change ended all keys before it, or until several changes in a row are too old for this
// grace period and none of them has a key in grace. A key that came under a longer grace period is
// found as long as its neighbours are.
func (s *Ledger) InGrace(ctx context.Context, one *decision.Service, now, grace int64) (keys []events.GraceKey, err error) {
	for upTo := one.Sequence; upTo > 0; upTo -= fewChanges {
		changes, err := s.changes(ctx, one.ID, max(0, upTo-fewChanges), upTo)
		if err != nil {
			return nil, fmt.Errorf("read the keys in grace: %w", err)
		}
		done := len(changes) == 0 || changes[0].Timestamp+grace <= now
		for _, e := range slices.Backward(changes) {
			if e.Event == events.KeyRotation && e.GracePeriodExpiry > now {
				keys, done = append(keys, events.GraceKey{PublicKey: e.OldKey, Expires: e.GracePeriodExpiry}), false
			}
			if e.EndsEarlierKeys() {
				return keys, nil
			}
		}
		if done {
			break
		}
	}
	return keys, nil
}
