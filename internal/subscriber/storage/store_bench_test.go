//go:build unix

package storage_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// benchServices is how many services a benchmark rotates.
const benchServices = 20_000

// BenchmarkStore is what a rotation costs the database of Billing, and of Auth, by the size of the
// batch: the time, the CPU time of this process and of the server, and the bytes that this process
// wrote. In the last ones, a few services rotate among many idle ones.
func BenchmarkStore(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		for _, size := range []int{1, 256, 1024} {
			benchBoth(b, engine, size, newLoad(benchServices))
		}
		load := newLoad(200_000 + 1000)
		load.idle = 200_000
		benchBoth(b, engine, 256, load)
	}
}

func benchBoth(b *testing.B, engine string, size int, load *load) {
	name := fmt.Sprintf("%s/batch=%d", engine, size)
	if load.idle > 0 {
		name += fmt.Sprintf("/idle=%d", load.idle)
	}
	b.Run("billing/"+name, func(b *testing.B) { benchStore(b, sqldb.Billing, engine, size, load.again()) })
	b.Run("auth/"+name, func(b *testing.B) { benchStore(b, sqldb.Auth, engine, size, load.again()) })
}

func benchStore(b *testing.B, owner sqldb.Owner, engine string, size int, load *load) {
	b.Helper()
	url := testenv.Database(b, engine)
	store, err := storage.Open(b.Context(), url, owner, discard())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	for len(load.unbound) > 0 {
		apply(b, store, load.bind(1000)...)
	}
	backends := backendsOf(b, engine, url)
	var used, served, wrote int64
	b.ResetTimer()
	for done := 0; done < b.N; {
		b.StopTimer()
		batch := load.rotate(min(size, b.N-done))
		ours, theirs, written := ownCPU(b), cpuOf(b, backends()), ownWrites()
		b.StartTimer()
		apply(b, store, batch...)
		b.StopTimer()
		used, served, wrote = used+ownCPU(b)-ours, served+cpuOf(b, backends())-theirs, wrote+ownWrites()-written
		b.StartTimer()
		done += len(batch)
	}
	b.ReportMetric(float64(used)/1000/float64(b.N), "cpu-µs/op")
	if engine == testenv.SQLite {
		b.ReportMetric(float64(wrote)/float64(b.N), "written-B/op")
	} else {
		b.ReportMetric(float64(served)/1000/float64(b.N), "server-cpu-µs/op")
	}
}

// load is services that rotate in rounds, in another order each round.
type load struct {
	unbound []events.Target
	idle    int // how many of the services that are bound first never rotate, a multiple of 1,000
	last    map[events.Target]events.Invalidation
	round   []events.Target
	now     int64 // in events: 3,000 are a second
}

func newLoad(services int) *load {
	l := &load{last: make(map[events.Target]events.Invalidation)}
	for i := range services { // their names have another order
		l.unbound = append(l.unbound, targetOf(fmt.Sprintf("cms-article-%08x", uint32(i)*2654435761)))
	}
	return l
}

// again returns the load as it was at its start.
func (l *load) again() *load {
	return &load{unbound: l.unbound, idle: l.idle, last: make(map[events.Target]events.Invalidation)}
}

func targetOf(service string) events.Target {
	target, err := events.ParseTarget("org.omiappreg.alice.business_app.7f8a9d." + service)
	if err != nil {
		panic(err)
	}
	return target
}

// bind returns the first events of up to n services.
func (l *load) bind(n int) (batch []events.Invalidation) {
	n = min(n, len(l.unbound))
	for _, target := range l.unbound[:n] {
		batch = append(batch, l.next(events.Invalidation{Event: events.ServiceBinding, Target: target}))
	}
	l.unbound = l.unbound[n:]
	if l.idle > 0 {
		l.idle -= n
		clear(l.last)
	}
	return batch
}

func (l *load) rotate(n int) (batch []events.Invalidation) {
	for range n {
		if len(l.round) == 0 {
			for target := range l.last {
				l.round = append(l.round, target)
			}
			mathrand.Shuffle(len(l.round), func(i, j int) { l.round[i], l.round[j] = l.round[j], l.round[i] })
		}
		target := l.round[0]
		l.round = l.round[1:]
		batch = append(batch, l.next(events.Invalidation{Event: events.KeyRotation, Target: target, OldKey: l.last[target].NewKey}))
	}
	return batch
}

func (l *load) next(e events.Invalidation) events.Invalidation {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	l.now++
	e.Origin, e.Nonce, e.Timestamp = subtest.Origin, events.NewNonce(), start+l.now/3000
	e.NewKey, _ = events.PublicKeyFromBytes(key) // it has 32 bytes
	e.GracePeriodExpiry = e.Timestamp
	if e.Event == events.KeyRotation {
		e.GracePeriodExpiry += 300
	}
	e.Sequence = l.last[e.Target].Sequence + 1
	l.last[e.Target] = e
	return e
}

// ownCPU is what this process has used, in nanoseconds.
func ownCPU(b *testing.B) int64 {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// ownWrites is what this process has written, in bytes, or 0 without /proc.
func ownWrites() int64 {
	text, _ := os.ReadFile("/proc/self/io")
	for line := range strings.Lines(string(text)) {
		if count, ok := strings.CutPrefix(line, "wchar: "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(count), 10, 64)
			return n
		}
	}
	return 0
}

// backendsOf returns a function that lists the server's processes that work on the database.
func backendsOf(b *testing.B, engine, url string) func() []int64 {
	b.Helper()
	if engine != testenv.Postgres {
		return func() []int64 { return nil }
	}
	db, err := sqldb.Open(b.Context(), url, discard())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	var list []int64
	return func() []int64 {
		if list != nil { // those of the store's connections, of which a benchmark needs one
			return list
		}
		const query = `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`
		rows, err := db.Reader().QueryContext(b.Context(), query)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var pid int64
			if err := rows.Scan(&pid); err != nil {
				b.Fatal(err)
			}
			list = append(list, pid)
		}
		if err := rows.Err(); err != nil {
			b.Fatal(err)
		}
		return list
	}
}

// cpuOf is what processes on this machine have used, in nanoseconds, or 0 without /proc.
func cpuOf(b *testing.B, pids []int64) (ns int64) {
	b.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		if err != nil {
			continue
		}
		onCPU, _, _ := bytes.Cut(text, []byte(" "))
		n, _ := strconv.ParseInt(string(onCPU), 10, 64)
		ns += n
	}
	return ns
}
