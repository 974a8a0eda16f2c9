package ledger

import (
	"context"
	"fmt"
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
		if decision.Once(seen, app) {
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

// ChangeOf returns which change a message of the stream of events says it is about, and the nonce of
// its event. The target is zero if the subject names no service. Nothing is verified.
func ChangeOf(subject string, payload []byte) (id ChangeID, nonce events.Nonce) {
	name, _ := strings.CutPrefix(subject, events.InvalidationSubject)
	t, err := events.ParseTarget(name)
	if err != nil {
		return id, nonce
	}
	id.Target = t
	id.Sequence, nonce = events.NamesOf(payload)
	return id, nonce
}
