package registry

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/keyring"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// noise returns a key that names nothing else; it need not be a point.
func noise() events.PublicKey {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	key, _ := events.PublicKeyFromBytes(b)
	return key
}

// put writes a service with these changes, as if they had been committed.
func put(t testing.TB, store *Store, list []events.Invalidation) *decision.Service {
	t.Helper()
	last := &list[len(list)-1]
	one := &decision.Service{Status: events.Active, Sequence: last.Sequence, Key: last.NewKey, ChangedAt: last.Timestamp}
	if last.NewKey.IsZero() {
		one.Status = events.Revoked
	}
	rows := make([]ledger.HistoryRow, len(list))
	for i := range list {
		rows[i] = ledger.HistoryRow{Event: list[i], RequestNonce: list[i].Nonce, ReceiptNonce: list[i].Nonce, Receipt: make([]byte, 600)}
	}
	g := &decision.Group{Target: last.Target, Service: *one}
	err := store.admin.ContinueHistories(t.Context(), []*decision.Group{g}, rows)
	one.ID = g.Service.ID
	if err != nil {
		t.Fatal(err)
	}
	return one
}

// nextChange returns a service's next change.
func nextChange(target events.Target, list []events.Invalidation, kind events.EventKind, at, grace int64) events.Invalidation {
	e := events.Invalidation{
		Target: target, Event: kind, Timestamp: at, GracePeriodExpiry: at + grace,
		Nonce: events.NewNonce(), Sequence: int64(len(list)) + 1,
	}
	if kind != events.ServiceBinding {
		e.OldKey = list[len(list)-1].NewKey
	}
	if kind != events.ServiceRevocation {
		e.NewKey = noise()
	}
	return e
}

func drawChanges(rt *rapid.T, target events.Target) (list []events.Invalidation) {
	now := int64(testNow)
	revoked := true
	for range rapid.IntRange(1, 150).Draw(rt, "changes") {
		now += rapid.Int64Range(0, 40).Draw(rt, "pause")
		kind, grace := events.ServiceBinding, int64(0)
		if !revoked {
			kind = rapid.SampledFrom([]events.EventKind{
				events.KeyRotation, events.KeyRotation, events.KeyRotation, events.KeyRotation, events.MasterReset, events.ServiceRevocation,
			}).Draw(rt, "kind")
		}
		if kind == events.KeyRotation {
			grace = rapid.Int64Range(0, 300).Draw(rt, "grace")
		}
		revoked = kind == events.ServiceRevocation
		next := nextChange(target, list, kind, now, grace)
		next.EndEarlier = kind == events.KeyRotation && grace == 0
		list = append(list, next)
	}
	return list
}

// TestHistoryParts: in parts of whatever length, a history is what all of its changes make of it, the ends at the parts' edges
// included; so is what the record says of keys in grace, and what is said of one key.
func TestHistoryParts(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		round := 0
		rapid.Check(t, func(rt *rapid.T) {
			round++
			target, err := events.ParseTarget(fmt.Sprintf("org.omiappreg.alice.s%d", round))
			if err != nil {
				rt.Fatal(err)
			}
			list := drawChanges(rt, target)
			one := put(t, store, list)
			ring := keyring.Collect(list)
			most := rapid.SampledFrom([]int64{1, 2, 3, 7, 64, 2048}).Draw(rt, "most")
			var got []events.HistoryKey
			for after, more := int64(0), true; more; after = got[len(got)-1].Sequence {
				var part []events.HistoryKey
				part, more, err = store.ledger.Lines(t.Context(), one, after, most)
				if err != nil || int64(len(part)) > most || more && len(part) == 0 {
					rt.Fatalf("after %d: %d lines, more: %t, %v", after, len(part), more, err)
				}
				got = append(got, part...)
			}
			if want := linesAsTheyWere(list, ring); !reflect.DeepEqual(want, got) {
				rt.Fatalf("in parts of %d:\n%s\nwant\n%s", most, printLines(got), printLines(want))
			}
			now := rapid.SampledFrom(list).Draw(rt, "at").Timestamp + rapid.Int64Range(0, 300).Draw(rt, "after")
			now = max(now, list[len(list)-1].Timestamp)
			var want []events.GraceKey
			for _, key := range ring.Keys {
				if ring.At(key, now) == keyring.InGrace {
					want = append(want, events.GraceKey{PublicKey: key.PublicKey, Expires: ring.Until(key)})
				}
			}
			if grace, err := store.ledger.InGrace(t.Context(), one, now, 300); err != nil || !slices.Equal(want, grace) {
				rt.Fatalf("in grace are %v, %v, want %v", grace, err, want)
			}
		})
	})
}

// linesAsTheyWere returns a history as it was made when all of it was read at once.
func linesAsTheyWere(list []events.Invalidation, ring keyring.Keyring) (lines []events.HistoryKey) {
	for _, key := range slices.Backward(ring.Keys) {
		line := events.HistoryKey{
			PublicKey: key.PublicKey, Sequence: key.Position, From: key.From, Event: list[key.Position-1].Event,
		}
		if until := ring.Until(key); until != keyring.NoEnd {
			line.Until = &until
		}
		lines = append(lines, line)
	}
	return lines
}

func printLines(lines []events.HistoryKey) string {
	var b strings.Builder
	for _, l := range lines {
		until := "current"
		if l.Until != nil {
			until = strconv.FormatInt(*l.Until, 10)
		}
		fmt.Fprintln(&b, l.Sequence, l.Event, l.From, until)
	}
	return b.String()
}

// longHistory returns the changes of a service that rotated once a minute, or was reset.
func longHistory(t testing.TB, name string, kind events.EventKind, n int) []events.Invalidation {
	t.Helper()
	target, err := events.ParseTarget("org.omiappreg.alice." + name)
	if err != nil {
		t.Fatal(err)
	}
	list := []events.Invalidation{nextChange(target, nil, events.ServiceBinding, testNow, 0)}
	for i := int64(1); i < int64(n); i++ {
		grace := int64(0)
		if kind == events.KeyRotation {
			grace = 300
		}
		list = append(list, nextChange(target, list, kind, testNow+60*i, grace))
	}
	return list
}

// TestHistoryPlan: a part of a long history, and the keys in grace of its service, cost as many rows as the part has, and some.
func TestHistoryPlan(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		one := put(t, store, longHistory(t, "long", events.MasterReset, 3000))
		put(t, store, longHistory(t, "another", events.MasterReset, 1000))
		explain := map[sqldb.Engine]string{
			sqldb.SQLite: "EXPLAIN QUERY PLAN ", sqldb.Postgres: "EXPLAIN ANALYZE ", sqldb.Cockroach: "EXPLAIN ANALYZE ",
		}[store.db.Engine()]
		text := planOf(t, store, explain+ledger.ChangesQuery, []any{one.ID, int64(1000), int64(1100)})
		if strings.Contains(text, "Seq Scan") || strings.Contains(text, "B-TREE") || strings.Contains(text, "FULL SCAN") ||
			store.db.Engine() == sqldb.SQLite && !strings.Contains(text, "(service=? AND sequence>? AND sequence<?)") {
			t.Error(text)
		}
		for _, read := range regexp.MustCompile(`actual.* rows=(\d+)`).FindAllStringSubmatch(text, -1) {
			if n, err := strconv.Atoi(read[1]); err != nil || n != 100 {
				t.Errorf("%d rows are read:\n%s", n, text)
			}
		}
	})
}

// TestHistoryOverHTTP: a long history comes in parts, and never as if a part were the whole.
func TestHistoryOverHTTP(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	list := longHistory(t, "long", events.KeyRotation, 2*events.HistoryPart+5)
	target := list[0].Target
	put(t, store, list)
	lookup := newLookup(Config{
		Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store, Log: testLog(t), Now: time.Now,
	}, nil, openGuard{})
	mux := http.NewServeMux()
	api.Mount(mux, lookup.Routes())
	trust, err := events.NewTrust(testOrigin, testKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	path := "/v1/apps/" + target.App.String() + "/services/" + target.Service.String() + "/history"
	get := func(parameters string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path+parameters, nil))
		return w
	}
	for parameters, status := range map[string]int{
		"": 413, "?other=1": 413, "?after=-1": 400, "?after=1e3": 400, "?after=0&limit=0": 400, "?limit=1": 400, "?after=0&limit=x": 400, "?after=": 400,
	} {
		if w := get(parameters); w.Code != status {
			t.Errorf("%q: %d, want %d: %s", parameters, w.Code, status, w.Body)
		}
	}
	sequence := int64(0)
	for i, want := range []int{2048, 2048, 5} {
		w := get(fmt.Sprint("?after=", sequence))
		part, err := trust.ServiceHistory(target, w.Body.Bytes())
		if err != nil || len(part.Keys) != want || part.More != (i < 2) || part.Keys[0].Sequence != sequence+1 {
			t.Fatalf("part %d: %d keys, more: %t, %v", i, len(part.Keys), part.More, err)
		}
		sequence = part.Keys[want-1].Sequence
	}
	part, err := trust.ServiceHistory(target, get("?after=10&limit=3").Body.Bytes())
	if err != nil || len(part.Keys) != 3 || !part.More || *part.Keys[0].Until != testNow+60*11+300 {
		t.Errorf("three keys after 10: %+v, %v", part, err)
	}
	// While as many are read as may be, the caller is told when to come again.
	for range cap(lookup.histories.free) {
		lookup.histories.free <- struct{}{}
	}
	if w := get("?after=0"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" {
		t.Errorf("beyond the bound: %d %v", w.Code, w.Header())
	}
}

// TestHistoryFlood: whatever is asked for, only so many lines are read; a record and a key cost nothing of that.
func TestHistoryFlood(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	list := longHistory(t, "long", events.MasterReset, events.HistoryPart+500)
	target := list[0].Target
	put(t, store, list)
	lookup := newLookup(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store, Log: testLog(t), Now: time.Now}, nil, openGuard{})
	lookup.histories.lines.SetLimit(1) // so that no time gives any back
	read := 0
	for range 20 {
		part, err := lookup.History(t.Context(), target, events.HistoryRange{Limit: events.HistoryPart, Part: true})
		if problem := (*api.Problem)(nil); err != nil && (!errors.As(err, &problem) || problem.Status != http.StatusServiceUnavailable) {
			t.Fatal(err)
		}
		read += len(part.Keys)
	}
	if read != linesBurst {
		t.Errorf("%d lines were read, want %d", read, linesBurst)
	}
	if record, err := lookup.keys(t.Context(), target); err != nil || record.Sequence != int64(len(list)) {
		t.Errorf("the record: %+v, %v", record, err)
	}
	for _, i := range []int{0, 1500, len(list) - 1} {
		record, err := lookup.Key(t.Context(), list[i].NewKey)
		if err != nil || record.Sequence != list[i].Sequence || record.From != list[i].Timestamp || record.ServiceID != target.Service ||
			(record.Until == nil) != (i == len(list)-1) || record.Until != nil && *record.Until != list[i+1].Timestamp {
			t.Errorf("key %d: %+v, %v", i, record, err)
		}
	}
	if record, err := lookup.Key(t.Context(), noise()); err != nil || record.Registered() {
		t.Errorf("a key that was never registered: %+v, %v", record, err)
	}
}

// BenchmarkLongHistory is what a part of 1,000 keys costs, signed, and a record, of a service with 100,000.
func BenchmarkLongHistory(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		for _, kind := range []events.EventKind{events.MasterReset, events.KeyRotation} {
			store := openStore(b, testenv.Database(b, engine))
			list := longHistory(b, "long", kind, 100_000)
			put(b, store, list)
			lookup := newLookup(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: store, Log: testLog(b), Now: time.Now}, nil, openGuard{})
			lookup.histories.lines.SetLimit(1 << 40)
			b.Run(fmt.Sprintf("%s/%s/part", engine, kind), func(b *testing.B) {
				for b.Loop() {
					part, err := lookup.History(b.Context(), list[0].Target, events.HistoryRange{After: 50_000, Limit: 1000, Part: true})
					if err != nil || len(part.Keys) != 1000 {
						b.Fatal(len(part.Keys), err)
					}
					part.Sign(testKey)
				}
			})
			b.Run(fmt.Sprintf("%s/%s/record", engine, kind), func(b *testing.B) {
				for b.Loop() {
					if _, err := lookup.keys(b.Context(), list[0].Target); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func planOf(t *testing.T, store *Store, query string, args []any) string {
	t.Helper()
	var plan strings.Builder
	rows, err := store.db.Reader().QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	for err == nil && rows.Next() {
		line := make([]any, len(columns))
		for i := range line {
			line[i] = new(any)
		}
		err = rows.Scan(line...)
		fmt.Fprintln(&plan, *line[len(line)-1].(*any))
	}
	if err := errors.Join(err, rows.Err()); err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	return plan.String()
}
