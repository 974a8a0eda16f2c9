package process

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/alecthomas/kong"
)

// versionFlags are flags of every program.
type versionFlags struct {
	Version versionFlag `help:"Print the version and exit."`
}

// versionFlag prints the version of the program. Unlike kong's own flag, it reports a failure to
// print.
type versionFlag bool

// BeforeReset implements kong's hook. It runs before kong looks for missing flags.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	if _, err := fmt.Fprintf(app.Stdout, "%s %s\n", app.Model.Name, version()); err != nil {
		return err
	}
	app.Exit(ExitDone)
	return nil
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return fmt.Sprintf("%s, %s, %s/%s", source(info), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// source names the code that a program was built from: its version, which Go takes from the module
// or the tag, and the commit if the program was built in a clone.
func source(info *debug.BuildInfo) string {
	what := info.Main.Version
	if what == "" {
		what = "(devel)"
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision == "" {
		return what
	}
	if settings["vcs.modified"] == "true" {
		revision += " (modified)"
	}
	return fmt.Sprintf("%s, commit %s of %s", what, revision, settings["vcs.time"])
}
