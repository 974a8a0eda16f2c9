package authsub

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/schema"
)

var (
	services = flag.Int("bench.services", 10_000, "services that BenchmarkStart has in its database")
	rotated  = flag.Int("bench.rotated", 1, "how often each of them has rotated")
)

// BenchmarkStart is what an Auth Provider with many services takes from its start to its first answer, and the memory that it
// has then:
//
//	go test ./authsub -run '^$' -bench Start -benchtime 1x -bench.services 1000000
func BenchmarkStart(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		b.Run(fmt.Sprintf("%s/services=%d", engine, *services), func(b *testing.B) { benchStart(b, engine) })
	}
}

func benchStart(b *testing.B, engine string) {
	url := testenv.Database(b, engine)
	fillDatabase(b, engine, url)
	js, err := jetstream.New(testenv.Connect(b, testenv.NewBroker(b).URL()))
	if err != nil {
		b.Fatal(err)
	}
	registry := subtest.NewRegistry(b, events.GenerateSigningKey())
	debug.FreeOSMemory()
	heapBefore, _ := memory(b)
	for b.Loop() {
		a, err := New(b.Context(), Config{JetStream: js, DatabaseURL: url, Trust: registry.Trust, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_, rss := memory(b)
		runtime.GC()
		heap, _ := memory(b)
		began := time.Now()
		runtime.GC()
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/GC")
		b.ReportMetric(float64(rss)/1e6, "rss-MB")
		b.ReportMetric(float64(heap-heapBefore)/1e6, "heap-MB")
		b.ReportMetric(float64(heap-heapBefore)/float64(*services), "B/service")
		if err := a.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// memory returns what lives in the heap, or is not collected yet, and what the process has of the machine's; 0 where there is
// no /proc.
func memory(b *testing.B) (heap, rss int64) {
	b.Helper()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &rss); n == 1 {
			break
		}
	}
	return int64(stats.HeapAlloc), rss * 1024
}

// fillDatabase makes services with the keys that they had, of which the last is current.
func fillDatabase(b *testing.B, engine, url string) {
	b.Helper()
	db, err := sqldb.Open(b.Context(), url, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.Migrate(b.Context(), sqldb.Auth, schema.Auth()); err != nil {
		b.Fatal(err)
	}
	numbers := func(n int) string {
		return fmt.Sprintf("(WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM c WHERE i < %d) SELECT i FROM c)", n-1)
	}
	random, number := "randomblob(32)", "printf('%07d', s.i)"
	if engine == testenv.Postgres {
		numbers = func(n int) string { return fmt.Sprintf("(SELECT generate_series(0, %d) AS i)", n-1) }
		random, number = "sha256((s.i || '-' || k.i)::text::bytea)", "lpad(s.i::text, 7, '0')"
	}
	target := "'org.omiappreg.alice.business_app.7f8a9d.cms-article-' || " + number
	events := *rotated + 1
	for _, statement := range []string{
		fmt.Sprintf(`INSERT INTO services (id, target, head, max_sequence, filled, sequenced)
			SELECT s.i + 1, %s, %d, %d, 0, %d FROM %s AS s`, target, events, events, events, numbers(*services)),
		fmt.Sprintf(`INSERT INTO keys (service, public_key, position, from_time, end_time)
			SELECT s.i + 1, %s, k.i + 1, 1705412600 + k.i, CASE WHEN k.i = %d THEN 9223372036854775807 ELSE 1705412900 + k.i END
			FROM %s AS s CROSS JOIN %s AS k`, random, *rotated, numbers(*services), numbers(events)),
	} {
		if _, err := db.Exec(b.Context(), statement); err != nil {
			b.Fatalf("%.60s: %v", statement, err)
		}
	}
}
