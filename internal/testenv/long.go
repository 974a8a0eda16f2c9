package testenv

import (
	"flag"
	"os"
	"testing"
)

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
