package api

import (
	"runtime/debug"
	"strings"
)

const module = "omiappreg.org/keyrotation"

// buildVersion returns the version of this module in the running program, in the form that micro
// services announce (SemVer, without a v).
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionIn(info)
}

func versionIn(info *debug.BuildInfo) string {
	found := info.Main.Version
	for _, dependency := range info.Deps { // the program's own module may be another one
		if dependency.Path == module {
			found = dependency.Version
		}
	}
	if version, ok := strings.CutPrefix(found, "v"); ok {
		return version
	}
	return "0.0.0-devel"
}
