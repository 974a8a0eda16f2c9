package storage_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/keyring"
)

// TestEnginesAgree: the same events, from registries that send a sequence and from those that
// don't, in one random order with repetitions, with histories that fill gaps and messages set aside
// in between, leave the same rows on every engine, and what the keyring makes of them.
func TestEnginesAgree(t *testing.T) {
	t.Parallel()
	for _, engine := range testenv.Engines() {
		if engine == testenv.SQLite {
			continue // the others are compared with it
		}
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			first, second := openTables(t, testenv.SQLite), openTables(t, engine)
			rapid.Check(t, func(rt *rapid.T) {
				services, steps := drawSteps(rt, t)
				want := map[events.Target]keyring.Keyring{}
				for i, step := range steps {
					step.join(want)
					if diff := cmp.Diff(first.take(rt, step), second.take(rt, step)); diff != "" {
						rt.Fatalf("step %d: - sqlite, + %s:\n%s", i, engine, diff)
					}
				}
				if diff := cmp.Diff(first.rows(rt), second.rows(rt)); diff != "" {
					rt.Fatalf("- sqlite, + %s:\n%s", engine, diff)
				}
				for _, s := range services {
					first.check(rt, s.Target, want[s.Target])
					second.check(rt, s.Target, want[s.Target])
				}
				first.empty(rt)
				second.empty(rt)
			})
		})
	}
}

// step is one call of the store.
type step struct {
	batch   []events.Invalidation
	aside   []storage.SetAside
	history *events.ServiceHistory // instead of both
}

func (s step) join(known map[events.Target]keyring.Keyring) {
	for i := range s.batch {
		e := &s.batch[i]
		known[e.Target] = known[e.Target].Apply(e)
	}
	if h := s.history; h != nil {
		target := events.Target{App: h.AppID, Service: h.ServiceID}
		known[target] = known[target].Join(keyring.OfHistory(h))
	}
}

func drawSteps(rt *rapid.T, t *testing.T) (services []*subtest.Service, steps []step) {
	t.Helper()
	var list []events.Invalidation
	var sequenced []*subtest.Service
	for i := range rapid.IntRange(1, 3).Draw(rt, "services") {
		s := subtest.NewService(t, fmt.Sprintf("s-%d", i))
		drawHistory(rt, s)
		if rapid.IntRange(0, 3).Draw(rt, "sequence") > 0 {
			sequenced = append(sequenced, s)
		} else {
			for i := range s.Events {
				s.Events[i].Sequence = 0
			}
		}
		services, list = append(services, s), append(list, s.Events...)
	}
	list = rapid.Permutation(list).Draw(rt, "order")
	list = slices.Concat(list, rapid.SliceOfN(rapid.SampledFrom(list), 0, 10).Draw(rt, "again"))
	list = list[rapid.IntRange(0, len(list)-1).Draw(rt, "never seen"):]
	for len(list) > 0 {
		n := rapid.IntRange(1, len(list)).Draw(rt, "batch")
		one := step{batch: list[:n]}
		for range rapid.IntRange(0, 2).Draw(rt, "aside") {
			one.aside = append(one.aside, storage.SetAside{
				StreamSequence: uint64(rapid.IntRange(1, 9).Draw(rt, "place")), Subject: "omi.v1.invalidations.\xffü\x00",
				Reason: "wrong_origin", Detail: rapid.String().Draw(rt, "detail"), Payload: []byte{0, 0xff}, At: start,
			})
		}
		steps, list = append(steps, one), list[n:]
		if len(sequenced) > 0 && rapid.Bool().Draw(rt, "fill") {
			whole := sequenced[rapid.IntRange(0, len(sequenced)-1).Draw(rt, "filled")]
			part := *whole // the registry's history at an earlier time
			part.Events = whole.Events[:rapid.IntRange(1, len(whole.Events)).Draw(rt, "of it")]
			history := part.History()
			steps = append(steps, step{history: &history})
		}
	}
	return services, steps
}

// tables are the store of a database, and the database itself.
type tables struct {
	store *storage.Store
	db    *sqldb.DB
}

func openTables(t *testing.T, engine string) tables {
	t.Helper()
	url := testenv.Database(t, engine)
	store := openStore(t, url)
	db, err := sqldb.Open(t.Context(), url, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return tables{store, db}
}

// take does one step, and returns the nonces of the events that were new.
func (d tables) take(rt *rapid.T, s step) (fresh []string) {
	if h := s.history; h != nil {
		if err := d.store.Fill(rt.Context(), events.Target{App: h.AppID, Service: h.ServiceID}, keyring.OfHistory(h)); err != nil {
			rt.Fatal(err)
		}
		return nil
	}
	list, err := d.store.Apply(rt.Context(), s.batch, s.aside)
	if err != nil {
		rt.Fatal(err)
	}
	for _, e := range list {
		fresh = append(fresh, e.Nonce.String())
	}
	return fresh
}

func names() []string { return []string{"applied", "keys", "cutoffs", "services", "set_aside"} }

// rows returns all rows of all tables.
func (d tables) rows(rt *rapid.T) map[string][]string {
	all := map[string][]string{}
	for _, table := range names() {
		all[table] = d.rowsOf(rt, table)
	}
	return all
}

func (d tables) rowsOf(rt *rapid.T, table string) (list []string) {
	query := "SELECT * FROM " + table
	switch table { // each engine gives services ids of its own
	case "services":
		query = "SELECT target, head, max_sequence, filled, sequenced FROM services"
	case "keys":
		query = "SELECT target, public_key, position, from_time, end_time FROM keys LEFT JOIN services ON id = service"
	case "cutoffs":
		query = "SELECT target, position, cut_time FROM cutoffs LEFT JOIN services ON id = service"
	}
	rows, err := d.db.Reader().QueryContext(rt.Context(), query)
	if err != nil {
		rt.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		rt.Fatal(err)
	}
	for rows.Next() {
		values, into := make([]string, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			rt.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%q", values))
	}
	if err := rows.Err(); err != nil {
		rt.Fatal(err)
	}
	slices.Sort(list) // each engine sorts text in its own way
	return list
}

func (d tables) check(rt *rapid.T, target events.Target, want keyring.Keyring) {
	got, _, err := d.store.KeyringOf(rt.Context(), target)
	if err != nil {
		rt.Fatal(err)
	}
	if diff := diffKeyrings(want, got.Keyring); diff != "" {
		rt.Fatalf("%s: the database is not what was seen:\n%s", target, diff)
	}
}

func (d tables) empty(rt *rapid.T) {
	for _, table := range names() {
		if _, err := d.db.Exec(rt.Context(), "DELETE FROM "+table); err != nil {
			rt.Fatal(err)
		}
	}
}
