//go:build unix

package registry

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

var benchIdle = flag.Int("store.idle", 300_000, "services of BenchmarkStore that do nothing, beside those that rotate")

// BenchmarkStore measures what the database costs for each rotation, without any signature: load, commit, and what forgets
// the messages once they are published, over services that have a history, alone and among many that do nothing (-store.idle).
//
// cpu-µs is the CPU of this process; with PostgreSQL, whose work is done elsewhere, server-µs is that of the server. With
// SQLite, wal-B is what the write-ahead log and the checkpoints write.
func BenchmarkStore(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		b.Run(engine, func(b *testing.B) {
			for _, idle := range []int{0, *benchIdle} {
				world := newStoreWorld(b, testenv.Database(b, engine), idle)
				for _, size := range []int{1, 256, 1024} {
					b.Run(fmt.Sprintf("%d-idle/%d", idle, size), func(b *testing.B) { world.benchmark(b, size) })
				}
			}
		})
	}
}

const (
	benchServices = 20_000
	benchHistory  = 2 // changes of each, before
)

// storeWorld is a store with services, of which each rotates in its turn. Its keys and payloads are noise.
type storeWorld struct {
	*intake
	url      string
	at       ledger.Position
	services []*decision.Service
	targets  []events.Target
	masters  map[events.AppID]events.PublicKey // who signs bindings
	order    []int                             // of the services, drawn anew each round
	next     int
	clock    time.Time
}

func newStoreWorld(b *testing.B, url string, idle int) *storeWorld {
	b.Helper()
	w := &storeWorld{url: url, clock: time.Now(), masters: map[events.AppID]events.PublicKey{}}
	w.intake = newTestIntake(b, openStore(b, url), Policy{Origin: testOrigin}, func() time.Time { return w.clock })
	var err error
	if w.at, err = w.store.ledger.SetPosition(b.Context(), ledger.Position{}, ledger.Position{Created: 1, Place: 1}, false); err != nil {
		b.Fatal(err)
	}
	for i := range benchServices {
		target, err := events.ParseTarget(fmt.Sprintf("org.omiappreg.app%03d.service%05d", i%100, i))
		if err != nil {
			b.Fatal(err)
		}
		w.targets, w.services = append(w.targets, target), append(w.services, nil)
		if _, known := w.masters[target.App]; !known {
			app := App{AppID: target.App, MasterPublicKey: events.GenerateSigningKey().Public()}
			if err := w.store.Admin().AddApp(b.Context(), app, w.clock.Unix()); err != nil {
				b.Fatal(err)
			}
			w.masters[app.AppID] = app.MasterPublicKey
		}
	}
	for range 50 { // as after a quiet start: what the server plans for a few rows has to do for many
		w.run(b, w.batch(b, 1))
	}
	const parts = benchServices / 500
	for i := range benchHistory * parts {
		if i < parts {
			w.addIdle(b, i*idle/parts, (i+1)*idle/parts)
		}
		w.run(b, w.batch(b, 500))
	}
	return w
}

// addIdle adds services that are bound and do nothing.
func (w *storeWorld) addIdle(b *testing.B, from, to int) {
	b.Helper()
	series, bytes, short := "WITH RECURSIVE n (i) AS (SELECT $1 UNION ALL SELECT i + 1 FROM n WHERE i < $2)", "randomblob(32)", "hex(randomblob(11))"
	if w.store.db.Engine() != sqldb.SQLite {
		series, bytes, short = "WITH n (i) AS (SELECT generate_series(CAST($1 AS BIGINT), CAST($2 AS BIGINT)))", "sha256(CAST(CAST(random() AS TEXT) AS BYTEA))", "md5(CAST(random() AS TEXT))"
	}
	name := "'org.omiappreg.app' || (i % 100) || '.idle' || i"
	for _, query := range []string{
		series + ` INSERT INTO services (target, status, sequence, public_key, changed_at, bound_at, recent_rotations, service_type, endpoint_url,
			provider_receipt) SELECT ` + name + ", 'active', 1, " + bytes + ", 1, 1, '', 'payments', 'https://service.example.org/some/endpoint', '' FROM n",
		series + ` INSERT INTO history (service, sequence, event, public_key, grace_period_expiry, committed_at, event_nonce, request_nonce,
			request_digest, receipt_nonce, receipt) SELECT id, 1, 'SERVICE_BINDING', public_key, 1, 1, ` + short + ", " + short + ", public_key, " +
			short + ", $3 FROM n JOIN services ON target = " + name,
	} {
		args := []any{from, to - 1, make([]byte, 600)}
		if !strings.Contains(query, "$3") {
			args = args[:2]
		}
		if to == from {
			return
		}
		if _, err := w.store.db.Exec(b.Context(), query, args...); err != nil {
			b.Fatal(err)
		}
	}
}

func (w *storeWorld) benchmark(b *testing.B, size int) {
	b.Helper()
	self, server, written := cpuOf("self"), serverCPU(b, w), writtenBytes(b)
	var idle time.Duration
	n := 0
	for b.Loop() {
		began := cpuOf("self")
		list := w.batch(b, size)
		idle += cpuOf("self") - began
		idle += w.run(b, list)
		n += size
	}
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	b.ReportMetric(each(cpuOf("self")-self-idle), "cpu-µs/rotation")
	b.ReportMetric(float64(writtenBytes(b)-written)/float64(n), "written-B/rotation")
	if w.store.db.Engine() != sqldb.SQLite {
		b.ReportMetric(each(serverCPU(b, w)-server), "server-µs/rotation")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "µs/rotation")
}

// batch makes the requests of the next services.
func (w *storeWorld) batch(b *testing.B, size int) []decision.Incoming {
	b.Helper()
	list := make([]decision.Incoming, 0, size)
	w.clock = w.clock.Add(time.Millisecond)
	if w.next+size > len(w.order) {
		w.order, w.next = rand.Perm(benchServices), 0
	}
	for i := range size {
		n := w.order[w.next+i]
		request := &events.Request{Kind: events.Rotation, Target: w.targets[n], Timestamp: w.clock.Unix(), Nonce: events.NewNonce(), NewKey: noiseKey(b)}
		if w.services[n] == nil {
			request.Kind = events.Binding
		}
		list = append(list, decision.Incoming{Request: request, StoredAt: w.clock.Unix(), Index: i})
	}
	w.next += size
	return list
}

func noiseKey(b *testing.B) events.PublicKey {
	b.Helper()
	nonce := events.NewNonce()
	sum := sha256.Sum256([]byte(nonce.String()))
	key, err := events.PublicKeyFromBytes(sum[:])
	if err != nil {
		b.Fatal(err)
	}
	return key
}

// run takes a batch through the store as the intake and the relay do. It returns the CPU time that is not the store's.
func (w *storeWorld) run(b *testing.B, list []decision.Incoming) (decided time.Duration) {
	b.Helper()
	st, err := w.load(b.Context(), list)
	if err != nil {
		b.Fatal(err)
	}
	began := cpuOf("self")
	groups := w.decide(st, list)
	decided = cpuOf("self") - began
	lost, err := w.store.ledger.Commit(b.Context(), groups, w.clock)
	if err != nil || len(lost.Services) > 0 {
		b.Fatal(len(lost.Services), err)
	}
	w.memory.learn(w.clock, &decision.Batch{State: st, Groups: groups}, lost, nil)
	if _, _, err := w.store.ledger.Position(b.Context()); err != nil {
		b.Fatal(err)
	}
	var messages []decision.Message
	for _, o := range decision.Changes(groups) {
		messages = append(messages, o.Messages()...)
	}
	if w.at, err = w.store.outbox.Delete(b.Context(), messages, w.at, w.at.Place+uint64(len(list))); err != nil {
		b.Fatal(err)
	}
	for i := range list {
		w.services[w.order[w.next-len(list)+i]] = &groups[i].Service
	}
	return decided
}

// decide lets every request stand.
func (w *storeWorld) decide(st *decision.State, list []decision.Incoming) (groups []*decision.Group) {
	payload := bytes.Repeat([]byte("x"), 600)
	for _, in := range list {
		g := &decision.Group{Target: in.Request.Target, Requests: []decision.Incoming{in}}
		if s := st.Services[g.Target]; s != nil {
			g.Was, g.Existed, g.Service = *s, true, *s
		}
		s := &g.Service
		o := decision.Outcome{In: in, Verdict: decision.Committed, Signer: w.masters[g.Target.App], EventBytes: payload, ReceiptBytes: payload, ReceiptNonce: events.NewNonce(), Event: events.Invalidation{
			Origin: testOrigin, Target: g.Target, Event: in.Request.Kind.Event(), OldKey: s.Key, NewKey: in.Request.NewKey,
			Timestamp: w.clock.Unix(), Nonce: events.NewNonce(), Sequence: s.Sequence + 1, GracePeriodExpiry: w.clock.Unix() + 3600,
		}}
		s.Status, s.Sequence, s.Key, s.ChangedAt = events.Active, o.Event.Sequence, o.Event.NewKey, o.Event.Timestamp
		s.Recent = []int64{in.StoredAt}
		if !g.Existed {
			g.Details = decision.NewDetails{BoundAt: &s.ChangedAt, ServiceType: new("payments"), EndpointURL: new("https://service.example.org/some/endpoint")}
		}
		g.Outcomes = []decision.Outcome{o}
		groups = append(groups, g)
	}
	return groups
}

// serverCPU is what the database's server has used so far, in all its processes.
func serverCPU(b *testing.B, w *storeWorld) (used time.Duration) {
	b.Helper()
	if w.store.db.Engine() == sqldb.SQLite {
		return 0
	}
	var name string
	if err := w.store.db.QueryRow(b.Context(), "SELECT current_database()").Scan(&name); err != nil {
		b.Fatal(err)
	}
	err := eachRow(b.Context(), w.store, "SELECT pid FROM pg_stat_activity WHERE datname = $1", []any{name}, func(row sqldb.Row) error {
		var pid int
		err := row.Scan(&pid)
		used += cpuOf(strconv.Itoa(pid))
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return used
}

// cpuOf is the CPU time of a process: 0 where that can't be read.
func cpuOf(pid string) time.Duration {
	if pid == "self" {
		var usage syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
		return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	content, err := os.ReadFile("/proc/" + pid + "/schedstat")
	if err != nil {
		return 0
	}
	var ns int64
	_, _ = fmt.Sscan(string(content), &ns)
	return time.Duration(ns)
}

// writtenBytes is what this process has written to files and sockets.
func writtenBytes(b *testing.B) (n int64) {
	b.Helper()
	content, err := os.ReadFile("/proc/self/io")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, "wchar: "); ok {
			_, _ = fmt.Sscan(rest, &n)
		}
	}
	return n
}
