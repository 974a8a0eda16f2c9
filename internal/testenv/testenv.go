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
	"runtime"
	"strconv"
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
