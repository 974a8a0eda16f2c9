// Package testenv gives tests the real things to run against: a broker, and a fresh database of
// every engine that this machine has. For tests only.
//
// SQLite is always there. PostgreSQL is the server that OMI_TEST_POSTGRES_URL names, with a user
// who may create databases. Without that variable, the test process starts a server from the
// programs that it finds, and stops it at the end. CockroachDB works the same way, with
// OMI_TEST_COCKROACH_URL or the program cockroach; the tests change settings of that server if the
// user may. Nothing is downloaded.
//
// A test that needs what is not installed is skipped. If OMI_TEST_REQUIRE names it (postgres,
// pgbouncer, cockroach, openssl, nginx, jose; separated by commas), the test fails instead, so CI
// can't skip by mistake. Tests that take long have a short form: OMI_TEST_LONG=1 runs them in full.
//
// A package that uses testenv needs the following. Without it, servers stop only when the process
// ends, and tests take longer:
//
//	func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }
package testenv

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// atOnce is how many parallel tests run at a time, at least. They mostly wait for a broker, a disk
// or a process. With two at a time, which is Go's default on two cores, internal/e2e takes twice as
// long and uses a third of the CPU.
const atOnce = 6

// Main runs the tests and then stops the servers that they started, and removes their files. It
// sets the defaults of -parallel and -rapid.checks.
func Main(m *testing.M) int {
	if !raced { // m.Run parses the flags later, so one that is given wins
		_ = flag.Set("test.parallel", strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0))))
	}
	fewerChecks()
	code := m.Run()
	servers.stop()
	return code
}

// Eventually waits until condition returns nil. If that takes longer than within, it fails the test
// with what was waited for, and the last error.
func Eventually(t testing.TB, within time.Duration, what string, condition func() error) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// longEnv has all tests run in full, as .ci/run does. Without it, tests that take long run in a
// short form or are skipped, so that `go test ./...` takes a few minutes at most.
const longEnv = "OMI_TEST_LONG"

// shortChecks is how many examples a property test draws in the short form, unless -rapid.checks
// says it. The library's own number is 100.
const shortChecks = "20"

// long says whether all tests run in full.
func long() bool { return os.Getenv(longEnv) != "" }

// Long skips a test that takes long and has no short form, unless all tests run in full.
func Long(t testing.TB) {
	t.Helper()
	if !long() {
		t.Skipf("it takes long: %s=1 runs it", longEnv)
	}
}

// Whole returns whole if all tests run in full, and short otherwise.
func Whole[T any](whole, short T) T {
	if long() {
		return whole
	}
	return short
}

// fewerChecks shortens the property tests, if the package has any.
func fewerChecks() {
	if !long() && flag.Lookup("rapid.checks") != nil {
		_ = flag.Set("rapid.checks", shortChecks) // one that is given still wins
	}
}

// Log is the log of a process under test, which the test can read at any time. It is safe for
// concurrent use, and its zero value is empty.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is what was logged so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count is how often a text occurs in the log.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

// Await waits until a text occurs in the log.
func (l *Log) Await(t testing.TB, text string) {
	t.Helper()
	Eventually(t, time.Minute, "the log says "+text, func() error {
		if said := l.String(); !strings.Contains(said, text) {
			return fmt.Errorf("it says %s", said)
		}
		return nil
	})
}
