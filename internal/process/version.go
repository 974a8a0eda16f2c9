package process

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/alecthomas/kong"
)

// versionFlags are of every program.
type versionFlags struct {
	Version versionFlag `help:"Say which version this is, and end."`
}

// versionFlag prints what the program was built from. kong's own does not say that it could not be printed.
type versionFlag bool

// BeforeReset implements kong's hook: nothing else is asked of the command line.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	if _, err := fmt.Fprintf(app.Stdout, "%s %s\n", app.Model.Name, version()); err != nil {
		return err
	}
	app.Exit(ExitDone)
	return nil
}

// version is the module's, or the commit's, as Go has stamped it, and what it was built by and for.
func version() string {
	what := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		what = info.Main.Version
	}
	return fmt.Sprintf("%s, %s, %s/%s", what, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
