package process

import (
	"runtime/debug"
	"testing"
)

func TestVersionSaysWhatItWasBuiltFrom(t *testing.T) {
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "5adbb9d1b7"}
	when := debug.BuildSetting{Key: "vcs.time", Value: "2026-12-01T08:00:00Z"}
	for name, test := range map[string]struct {
		version  string
		settings []debug.BuildSetting
		want     string
	}{
		"not stamped":          {"", nil, "(devel)"},
		"from the proxy":       {"v0.1.0", nil, "v0.1.0"},
		"from a clone":         {"v0.1.0", []debug.BuildSetting{revision, when}, "v0.1.0, commit 5adbb9d1b7 of 2026-12-01T08:00:00Z"},
		"from a changed clone": {"v0.1.0+dirty", []debug.BuildSetting{{Key: "vcs.modified", Value: "true"}, revision, when}, "v0.1.0+dirty, commit 5adbb9d1b7 (modified) of 2026-12-01T08:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			info := &debug.BuildInfo{Main: debug.Module{Version: test.version}, Settings: test.settings}
			if got := source(info); got != test.want {
				t.Errorf("source() = %q, want %q", got, test.want)
			}
		})
	}
}
