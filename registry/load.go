package registry

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"slices"
	"strconv"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// load reads what the decision about these requests depends on: a query for each kind of thing.
func (s *Store) load(ctx context.Context, requests []incoming) (*state, error) {
	want := newWanted(requests)
	st := newState()
	for _, step := range []struct {
		what string
		read func(context.Context, *wanted, *state) error
	}{
		{"services", s.loadServices},
		{"apps", s.loadApps},
		{"keys", s.loadKeys},
		{"nonces", s.loadNonces},
	} {
		if err := step.read(ctx, want, st); err != nil {
			return nil, fmt.Errorf("load %s: %w", step.what, err)
		}
	}
	return st, nil
}

// wanted is what a batch touches, each thing once. Requests that failed the first check touch nothing.
type wanted struct {
	targets, apps, keys []any
	nonces              []any // pairs of target and nonce
}

func newWanted(requests []incoming) *wanted {
	w := &wanted{}
	seen := make(map[any]bool, 3*len(requests))
	once := func(list *[]any, key any, values ...any) {
		if !seen[key] {
			seen[key] = true
			*list = append(*list, values...)
		}
	}
	for _, in := range requests {
		r := in.request
		if in.refusal != nil {
			continue
		}
		once(&w.targets, r.Target, r.Target.String())
		once(&w.nonces, requestID{r.Target, r.Nonce}, r.Target.String(), r.Nonce.String())
		if r.Kind.ByMasterKey() {
			once(&w.apps, r.Target.App, r.Target.App.String())
		}
		if r.Kind != events.Revocation {
			once(&w.keys, r.NewKey, r.NewKey.Bytes())
		}
	}
	return w
}

func (s *Store) loadServices(ctx context.Context, w *wanted, st *state) error {
	if len(w.targets) == 0 {
		return nil
	}
	query := `SELECT target, status, sequence, public_key, changed_at, bound_at, recent_rotations,
		service_type, endpoint_url, provider_receipt FROM services WHERE target IN ` + sqldb.In(1, len(w.targets))
	return s.each(ctx, query, w.targets, func(rows *sql.Rows) error {
		t, one, err := scanService(rows)
		st.services[t] = one
		return err
	})
}

func scanService(rows interface{ Scan(...any) error }) (events.Target, *service, error) {
	var t events.Target
	var one service
	err := rows.Scan(target(&t), &one.status, &one.sequence, keyColumn{&one.key}, &one.changedAt, &one.boundAt,
		times(&one.recent), &one.serviceType, &one.endpointURL, &one.providerReceipt)
	return t, &one, err
}

func (s *Store) loadApps(ctx context.Context, w *wanted, st *state) error {
	if len(w.apps) == 0 {
		return nil
	}
	query := "SELECT app_id, master_public_key FROM apps WHERE app_id IN " + sqldb.In(1, len(w.apps))
	return s.each(ctx, query, w.apps, func(rows *sql.Rows) error {
		var app App
		if err := rows.Scan(text(&app.AppID), keyColumn{&app.MasterPublicKey}); err != nil {
			return err
		}
		st.masters[app.AppID] = app.MasterPublicKey
		return nil
	})
}

func (s *Store) loadKeys(ctx context.Context, w *wanted, st *state) error {
	if len(w.keys) == 0 {
		return nil
	}
	list := sqldb.In(1, len(w.keys))
	query := "SELECT public_key FROM history WHERE public_key IN " + list +
		" UNION ALL SELECT master_public_key FROM apps WHERE master_public_key IN " + list
	return s.each(ctx, query, w.keys, func(rows *sql.Rows) error {
		var key events.PublicKey
		if err := rows.Scan(keyColumn{&key}); err != nil {
			return err
		}
		st.takenKeys[key] = true
		return nil
	})
}

func (s *Store) loadNonces(ctx context.Context, w *wanted, st *state) error {
	for part := range slices.Chunk(w.nonces, 2*sqldb.MaxRows) {
		query := `SELECT target, request_nonce, request_digest, receipt_nonce, receipt, event, public_key FROM history
			WHERE (target, request_nonce) IN (VALUES ` + s.db.Engine().Values(1, len(part)/2, sqldb.Text, sqldb.Text) + ")"
		if err := s.each(ctx, query, part, func(rows *sql.Rows) error { return scanPrior(rows, st) }); err != nil {
			return err
		}
	}
	return nil
}

func scanPrior(rows *sql.Rows, st *state) error {
	var id requestID
	var p prior
	var digest []byte
	if err := rows.Scan(target(&id.target), nonceText(&id.nonce), &digest, nonceText(&p.receiptNonce), &p.receipt,
		&p.event, keyColumn{&p.key}); err != nil {
		return err
	}
	if len(digest) != sha256.Size {
		return fmt.Errorf("the digest of a request of %s has %d bytes", id.target, len(digest))
	}
	p.digest = [sha256.Size]byte(digest)
	st.committed[id] = p
	return nil
}

// previous returns the most recent earlier keys of each service, without its current one.
func (s *Store) previous(ctx context.Context, targets []events.Target) (map[events.Target][]pastKey, error) {
	found := map[events.Target][]pastKey{}
	if len(targets) == 0 {
		return found, nil
	}
	args := make([]any, 0, len(targets)+1)
	for _, t := range targets {
		args = append(args, t.String())
	}
	args = append(args, previousKeys)
	query := `SELECT h.target, h.public_key, h.sequence FROM services s JOIN history h ON h.target = s.target
		AND h.sequence < s.sequence AND h.sequence >= s.sequence - CAST($` + strconv.Itoa(len(args)) + ` AS BIGINT)
		WHERE s.target IN ` + sqldb.In(1, len(targets)) + ` AND h.public_key IS NOT NULL ORDER BY h.sequence DESC`
	err := s.each(ctx, query, args, func(rows *sql.Rows) error {
		var t events.Target
		var past pastKey
		if err := rows.Scan(target(&t), keyColumn{&past.key}, &past.sequence); err != nil {
			return err
		}
		found[t] = append(found[t], past)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load earlier keys: %w", err)
	}
	return found, nil
}
