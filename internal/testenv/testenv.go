// Package testenv gives tests the real things to run against: a broker, and a fresh database of every engine that this
// machine has. For tests only.
//
// SQLite is always there. PostgreSQL is the server that OMI_TEST_POSTGRES_URL names (by a user who may create databases),
// or one that the test process starts from the programs it finds, and which ends with it. CockroachDB likewise, by
// OMI_TEST_COCKROACH_URL or the program cockroach; the whole server is set up for tests, if that user may. Nothing is
// downloaded. A test of an engine that isn't there is skipped, unless OMI_TEST_REQUIRE names it (postgres,pgbouncer,cockroach,openssl,nginx,jose):
// then it fails, so that CI can't skip by mistake.
//
// A package that uses any of this has the following, or its servers are stopped only as the process ends, and its tests take longer:
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

// atOnce is how many parallel tests run at a time, at least. They mostly wait: for a broker, a disk or a process. With two at a
// time, which is the default on two cores, internal/e2e takes twice as long and uses a third of the CPU.
const atOnce = 6

// Main runs the tests and then stops the servers that they started, and removes their files. It sets
// the defaults of -parallel and -rapid.checks.
func Main(m *testing.M) int {
	if !raced {
		_ = flag.Set("test.parallel", strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0)))) // a flag that is given is read later, and counts
	}
	fewerChecks()
	code := m.Run()
	servers.stop()
	return code
}

// Eventually waits until condition returns nil, and fails the test with what and condition's last error if it doesn't
// within the given time.
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
