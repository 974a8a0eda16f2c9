package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// Load reads what the decision about these requests depends on and st lacks, in two round trips to
// a server: the nonces need the ids of their services. It reads keys and nonces only if used is
// true.
//
// The order matters, because another replica may commit a copy of a request between two queries.
// Keys come first and nonces last: if a request's key is found, then so are its service and its
// nonce, and it is answered as a duplicate. In the other order, it would be refused with
// key_in_use.
func (s *Ledger) Load(ctx context.Context, requests []decision.Incoming, st *decision.State, used bool) error {
	want := newWanted(requests, st, used)
	err := s.read(ctx, func(p *sqldb.Pipeline) {
		s.queryKeys(p, want, st)
		s.queryServices(p, want, st)
		s.queryApps(p, want, st)
	})
	if err != nil {
		return err
	}
	return s.read(ctx, func(p *sqldb.Pipeline) { s.queryNonces(p, want, st) })
}

// wanted is what a batch needs and is not known yet, each thing once. Requests that failed the
// first check need nothing. keys and nonces are those of all others, if it matters which were used.
type wanted struct {
	names   []any                    // of the targets
	targets map[string]events.Target // by their names
	apps    []any
	keys    []any
	nonces  []decision.RequestID
}

func newWanted(requests []decision.Incoming, st *decision.State, used bool) *wanted {
	w, n := newWantedServices(0), 0
	if used {
		n = len(requests)
	}
	apps, keys, nonces := map[events.AppID]bool{}, make(map[events.PublicKey]bool, n), make(map[decision.RequestID]bool, n)
	for i := range requests {
		r := requests[i].Request
		if requests[i].Refusal != nil {
			continue
		}
		if _, known := st.Services[r.Target]; !known {
			w.service(r.Target)
		}
		if _, known := st.Masters[r.Target.App]; !known && r.Kind.ByMasterKey() && once(apps, r.Target.App) {
			w.apps = append(w.apps, r.Target.App.String())
		}
		if !used {
			continue
		}
		if id := (decision.RequestID{Target: r.Target, Nonce: r.Nonce}); once(nonces, id) {
			w.nonces = append(w.nonces, id)
		}
		if r.Kind != events.Revocation && once(keys, r.NewKey) {
			w.keys = append(w.keys, r.NewKey.Bytes())
		}
	}
	return w
}

// once reports whether key is seen for the first time.
func once[K comparable](seen map[K]bool, key K) bool {
	first := !seen[key]
	seen[key] = true
	return first
}

// newWantedServices returns an empty list with room for n services.
func newWantedServices(n int) *wanted {
	return &wanted{targets: make(map[string]events.Target, n)}
}

func (w *wanted) service(t events.Target) {
	name := t.String()
	if _, ok := w.targets[name]; !ok {
		w.targets[name] = t
		w.names = append(w.names, name)
	}
}

// servicesNamed finds services by the unique index of services (target).
func servicesNamed(e sqldb.Engine) string {
	return "SELECT target, " + serviceColumns + " FROM (%s) AS v " + e.LookupJoin() + " services ON target = v.column1"
}

func (s tables) queryServices(p *sqldb.Pipeline, w *wanted, st *decision.State) {
	for _, t := range w.targets {
		st.Services[t] = nil
	}
	var name string
	query := servicesNamed(s.db.Engine())
	s.query(p, "load services", query, []sqldb.Type{sqldb.Text}, w.names, func(row sqldb.Row) error {
		one := &decision.Service{}
		err := row.Scan(append([]any{&name}, columnsOf(one)...)...)
		st.Services[w.targets[name]] = one
		return err
	})
}

// serviceColumns are what columnsOf reads.
const serviceColumns = "id, status, sequence, public_key, changed_at, recent_rotations, stream_created_at, stream_sequence, master_signed_at"

func columnsOf(s *decision.Service) []any {
	return []any{
		&s.ID, &s.Status, &s.Sequence, keyColumn{&s.Key}, &s.ChangedAt, times(&s.Recent), &s.Place.Stream, &s.Place.Sequence, &s.SignedAt,
	}
}

func (s tables) queryApps(p *sqldb.Pipeline, w *wanted, st *decision.State) {
	const query = "SELECT app_id, master_public_key FROM apps WHERE app_id IN (%s)"
	s.query(p, "load apps", query, []sqldb.Type{sqldb.Text}, w.apps, func(row sqldb.Row) error {
		var app App
		if err := row.Scan(text(&app.AppID), keyColumn{&app.MasterPublicKey}); err != nil {
			return err
		}
		st.Masters[app.AppID] = app.MasterPublicKey
		return nil
	})
}

// takenOf finds keys by the unique index of history (public_key), by apps_master_public_key, and by
// the primary key of reserved_keys (public_key, app_id).
func takenOf(e sqldb.Engine) string {
	return `SELECT public_key FROM (%[1]s) AS v ` + e.LookupJoin() + ` history ON public_key = v.column1
		UNION ALL SELECT master_public_key FROM (%[1]s) AS v ` + e.LookupJoin() + ` apps ON master_public_key = v.column1
		UNION ALL SELECT public_key FROM (%[1]s) AS v ` + e.LookupJoin() + ` reserved_keys ON public_key = v.column1`
}

func (s tables) queryKeys(p *sqldb.Pipeline, w *wanted, st *decision.State) {
	query := takenOf(s.db.Engine())
	s.query(p, "load keys", query, []sqldb.Type{sqldb.Bytes}, w.keys, func(row sqldb.Row) error {
		var key events.PublicKey
		if err := row.Scan(keyColumn{&key}); err != nil {
			return err
		}
		st.TakenKeys[key] = true
		return nil
	})
}

// priorOf finds requests by the unique index of history (service, request_nonce).
func priorOf(e sqldb.Engine) string {
	return `SELECT service, request_nonce, request_digest, receipt_nonce, receipt, event, public_key
		FROM (%s) AS v ` + e.LookupJoin() + ` history ON service = v.column1 AND request_nonce = v.column2`
}

func (s tables) queryNonces(p *sqldb.Pipeline, w *wanted, st *decision.State) {
	values := make([]any, 0, 2*len(w.nonces))
	targets := make(map[int64]events.Target, len(w.nonces))
	for _, id := range w.nonces {
		if one := st.Services[id.Target]; one != nil { // otherwise it has no history
			targets[one.ID] = id.Target
			values = append(values, one.ID, id.Nonce.String())
		}
	}
	query := priorOf(s.db.Engine())
	s.query(p, "load nonces", query, []sqldb.Type{sqldb.Int, sqldb.Text}, values, func(row sqldb.Row) error {
		return scanPrior(row, targets, st)
	})
}

func scanPrior(row sqldb.Row, targets map[int64]events.Target, st *decision.State) error {
	var service int64
	var id decision.RequestID
	var p decision.Prior
	var digest []byte
	if err := row.Scan(&service, nonceText(&id.Nonce), &digest, nonceText(&p.ReceiptNonce), &p.Receipt,
		&p.Event, keyColumn{&p.Key}); err != nil {
		return err
	}
	id.Target = targets[service]
	if len(digest) != sha256.Size {
		return fmt.Errorf("the digest of a request of %s has %d bytes", id.Target, len(digest))
	}
	p.Digest = [sha256.Size]byte(digest)
	st.Committed[id] = p
	return nil
}

// earlierOf finds services by the unique index of services (target), and their changes by the
// primary key of history (service, sequence).
func earlierOf(e sqldb.Engine) string {
	from := `services s JOIN (%s) AS v ON s.target = v.column1`
	if e == sqldb.Cockroach { // it joins in this order
		from = `(%s) AS v ` + e.LookupJoin() + ` services s ON s.target = v.column1`
	}
	return `SELECT s.target, h.public_key, h.sequence FROM ` + from + `
		` + e.LookupJoin() + ` history h ON h.service = s.id AND h.sequence < s.sequence AND h.sequence >= s.sequence - v.column2
		WHERE h.public_key IS NOT NULL ORDER BY h.sequence DESC`
}

// Previous returns the earlier keys of each service without the current one, going back this many
// sequences, newest first.
func (s *Ledger) Previous(ctx context.Context, targets []events.Target, sequences []int64) (map[events.Target][]decision.PastKey, error) {
	found := map[events.Target][]decision.PastKey{}
	values := make([]any, 0, 2*len(targets))
	for i, t := range targets {
		values = append(values, t.String(), sequences[i])
	}
	query := earlierOf(s.db.Engine())
	err := s.eachPart(ctx, query, []sqldb.Type{sqldb.Text, sqldb.Int}, values, func(row sqldb.Row) error {
		var t events.Target
		var past decision.PastKey
		err := row.Scan(target(&t), keyColumn{&past.Key}, &past.Sequence)
		found[t] = append(found[t], past)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load earlier keys: %w", err)
	}
	return found, nil
}
