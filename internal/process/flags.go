package process

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// variables are the environment variables of a program, as its start found them.
type variables struct {
	empty map[string]bool // set, to nothing or to white space
}

// trimVariables takes the white space from the ends of what the program's variables hold: a Secret
// that is made of a file brings its last newline along. Those that are empty then are taken away,
// so that no flag is parsed from nothing; check judges them.
func trimVariables(parser *kong.Kong) (variables, error) {
	v := variables{empty: map[string]bool{}}
	err := kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			for _, name := range flag.Envs {
				if err := v.trim(name); err != nil {
					return err
				}
			}
		}
		return next(nil)
	})
	return v, err
}

// brokerVariable stays as it is where it is empty: commands that need a broker refuse it, and to
// the others it is nothing.
const brokerVariable = "OMI_NATS_URL"

func (v variables) trim(name string) error {
	text, set := os.LookupEnv(name)
	trimmed := strings.TrimSpace(text)
	switch {
	case !set || text != "" && trimmed == text:
		return nil
	case trimmed != "" || name == brokerVariable:
		return os.Setenv(name, trimmed)
	}
	v.empty[name] = true
	return os.Unsetenv(name)
}

// check refuses a variable, or a flag without a default, that is there and empty. A script whose
// own variable is not set would trust any registry, or go without the certificates that it names.
func (v variables) check(command *kong.Context) error {
	given := map[*kong.Flag]bool{}
	for _, step := range command.Path {
		if step.Flag == nil || step.Resolved {
			continue
		}
		given[step.Flag] = true
		if slices.ContainsFunc(step.Flag.Envs, mustHaveValue) && !step.Flag.HasDefault && emptyValue(step.Flag.Target) {
			return Usagef("--%s is given and empty: give it a value, or leave it out", step.Flag.Name)
		}
	}
	for _, flag := range command.Flags() {
		for _, name := range flag.Envs {
			if v.empty[name] && !given[flag] && mustHaveValue(name) {
				return Usagef("%s is set and empty: give it a value, or unset it", name)
			}
		}
	}
	return nil
}

// mustHaveValue reports whether a variable is not as good as unset where it is empty. Without the
// exceptions, no less is checked.
func mustHaveValue(name string) bool {
	switch name {
	case "OMI_APP_ID", "OMI_SERVICE_ID", "OMI_LOG_LEVEL":
		return false
	}
	return true
}

func emptyValue(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		return strings.TrimSpace(v.String()) == ""
	case reflect.Slice:
		for i := range v.Len() {
			if !emptyValue(v.Index(i)) {
				return false
			}
		}
		return v.Type().Elem().Kind() == reflect.String
	default:
		return false
	}
}

// plainWords says in a person's words what kong says of a value that begins with a hyphen, such as
// -1.
func plainWords(err string) string {
	flag := regexp.MustCompile(`^(--[a-z-]+): expected .* value but got "(-[^"]*)" \((?:short|long) flag`).FindStringSubmatch(err)
	if flag == nil {
		return err
	}
	return fmt.Sprintf("%s: %s looks like a flag: write %s=%s if it is the value", flag[1], flag[2], flag[1], flag[2])
}

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
