package testenv

import (
	"flag"
	"testing"

	_ "pgregory.net/rapid" // its flags
)

// TestLong: the short form is the default, and OMI_TEST_LONG ends it.
func TestLong(t *testing.T) {
	for set, want := range map[string]string{"": "short", "1": "whole"} {
		t.Setenv(longEnv, set)
		if got := Whole("whole", "short"); got != want {
			t.Errorf("with %q it is the %s form", set, got)
		}
		t.Run(want, func(t *testing.T) {
			defer func() {
				if t.Skipped() != (want == "short") {
					t.Errorf("with %q a long test was skipped: %t", set, t.Skipped())
				}
			}()
			Long(t)
		})
	}
	t.Setenv(longEnv, "")
	fewerChecks()
	if got := flag.Lookup("rapid.checks").Value.String(); got != shortChecks {
		t.Errorf("-rapid.checks is %s", got)
	}
}
