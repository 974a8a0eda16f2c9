package api

import (
	"runtime/debug"
	"testing"
)

// TestVersionIn: a service announces the version of this module, also within another one.
func TestVersionIn(t *testing.T) {
	t.Parallel()
	for want, info := range map[string]*debug.BuildInfo{
		"0.0.0-devel": {Main: debug.Module{Path: module, Version: "(devel)"}},
		"0.1.0":       {Main: debug.Module{Path: module, Version: "v0.1.0"}},
		"0.2.0": {
			Main: debug.Module{Path: "example.org/core", Version: "v3.0.0"},
			Deps: []*debug.Module{{Path: "example.org/other", Version: "v4.0.0"}, {Path: module, Version: "v0.2.0"}},
		},
	} {
		if got := versionIn(info); got != want {
			t.Errorf("%s instead of %s", got, want)
		}
	}
}
