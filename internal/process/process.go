// Package process holds what the project's processes have in common: how they log, stop, reach the
// broker, serve HTTP and end with an exit code.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mattn/go-isatty"
	"github.com/nats-io/nats.go"
	"github.com/oklog/run"

	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/printable"
)

// Exit codes.
const (
	ExitDone        = 0
	ExitRefused     = 1 // the registry refused, or something failed
	ExitUsage       = 2 // a flag, URL, file or key is wrong
	ExitUnreachable = 3
)

// codedError is an error that ends the process with a code of its own.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }

// Usage marks an error that the person at the shell can fix: the process ends with code 2.
func Usage(err error) error { return codedError{err, ExitUsage} }

// Usagef is [Usage] of a formatted error: one line that says what is wrong and how to fix it.
func Usagef(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// Unreachable marks an error that means "no answer": the process ends with code 3.
func Unreachable(err error) error { return codedError{err, ExitUnreachable} }

// Refused marks an error as a refusal by the registry: the process ends with code 1.
func Refused(err error) error { return codedError{err, ExitRefused} }

// Main parses the command line into cli, a kong grammar, runs the chosen command's Run method with
// the bound values, and returns the exit code.
func Main(cli any, args []string, stderr io.Writer, options ...kong.Option) int {
	parser, err := kong.New(cli, append([]kong.Option{
		kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(decodeDuration)),
		kong.Embed(&versionFlags{}), kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
	}, options...)...)
	if err != nil {
		panic("process: the command line's grammar is wrong: " + err.Error())
	}
	name := parser.Model.Name
	if slices.ContainsFunc(args, keyformat.LooksPrivate) {
		return report(stderr, name, errKeyGiven)
	}
	found, err := trimVariables(parser)
	if err != nil {
		return report(stderr, name, err)
	}
	command, err := parser.Parse(args)
	if err != nil {
		if keyformat.LooksPrivate(err.Error()) { // it quotes a variable's value
			return report(stderr, name, errKeyGiven)
		}
		// The text of --help could not be written.
		if unwritten := (*fs.PathError)(nil); errors.As(err, &unwritten) && unwritten.Op == "write" {
			return report(stderr, name, fmt.Errorf("print: %w", err))
		}
		what, _, _ := strings.Cut(err.Error(), "\n")
		printable.Fprintf(stderr, "%s: %s (see %s --help)\n", name, plainWords(what), commandOf(err, name, args))
		return ExitUsage
	}
	if err := cmp.Or(checkVariables(command.Flags()), found.check(command)); err != nil {
		return report(stderr, name, err)
	}
	return report(stderr, name, command.Run())
}

// errKeyGiven is the answer to a private key instead of its file's name. Other errors quote such
// names, and others can read what is printed. So the key goes no further.
var errKeyGiven = Usagef("a private key is never an argument or the value of a variable: give the name of its file, or its public half if that is wanted")

// checkVariables refuses a variable that holds a private key instead of the name of its file.
func checkVariables(flags []*kong.Flag) error {
	for _, flag := range flags {
		for _, name := range flag.Envs {
			if keyformat.LooksPrivate(os.Getenv(name)) {
				return fmt.Errorf("%s: %w", name, errKeyGiven)
			}
		}
	}
	return nil
}

// commandOf returns the command that the arguments name, as much as could be read: its help is the
// one to read. It doesn't take a word that is no command for an argument of the default command.
func commandOf(err error, name string, args []string) string {
	wrong := (*kong.ParseError)(nil)
	if !errors.As(err, &wrong) || wrong.Context.Selected() == nil {
		return name
	}
	command := wrong.Context.Selected()
	if strings.HasPrefix(err.Error(), "unexpected argument") && !slices.Contains(args, command.Name) {
		return name
	}
	return command.FullPath()
}

// decodeDuration reads a duration with a unit, or a number of whole seconds, as the protocol counts
// them.
func decodeDuration(ctx *kong.DecodeContext, target reflect.Value) error {
	var s string
	if err := ctx.Scan.PopValueInto("duration", &s); err != nil {
		return err
	}
	d, err := time.ParseDuration(s)
	if seconds, bad := strconv.ParseInt(s, 10, 32); bad == nil {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil {
		return fmt.Errorf("want a duration such as 300s or 5m, or whole seconds, not %q", s)
	}
	target.SetInt(int64(d))
	return nil
}

// report prints an error in one line, and returns its exit code.
func report(stderr io.Writer, name string, err error) int {
	if err == nil {
		return ExitDone
	}
	// Joined errors, and some of the libraries', have several lines.
	printable.Fprintf(stderr, "%s: %s\n", name, strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
	return ExitCode(err)
}

// ExitCode returns the exit code of an error.
func ExitCode(err error) int {
	if err == nil {
		return ExitDone
	}
	if coded := (codedError{}); errors.As(err, &coded) {
		return coded.code
	}
	return ExitRefused
}

// PrintJSON prints one value on one line of the standard output, in one write: a reader of lines
// never sees a part of one.
func PrintJSON(v any) error {
	line, err := json.Marshal(v, json.Deterministic(true), jsontext.SpaceAfterComma(true), jsontext.SpaceAfterColon(true))
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if _, err := os.Stdout.Write(printable.JSON(append(line, '\n'))); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// Print prints the result of a command to the standard output. If that can't be written, the
// command has failed. The arguments may come from other parties: each becomes one printable line,
// unless it was composed of such lines ([printable.Sprintf]).
func Print(format string, args ...any) error {
	if _, err := os.Stdout.WriteString(printable.Sprintf(format, args...)); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// NewLog logs text to a terminal and JSON otherwise, both printable whatever is logged.
func NewLog(w *os.File, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if isatty.IsTerminal(w.Fd()) {
		return slog.New(slog.NewTextHandler(printable.Writer{W: w}, options))
	}
	return slog.New(slog.NewJSONHandler(printable.Writer{W: w, JSON: true}, options))
}

// Actor is one part of a process. It runs until its context ends, or until it can't go on.
type Actor func(ctx context.Context) error

// StopSignals returns the signals that end a process cleanly. SIGHUP says that its terminal is
// gone. It is not among them if the parent process has set it to be ignored, as nohup does.
func StopSignals() []os.Signal {
	stop := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		stop = append(stop, syscall.SIGHUP)
	}
	return stop
}

// Run runs the actors until one of [StopSignals] comes or the first actor ends. Then it stops all
// the others, and waits for them. A signal is no error.
func Run(log *slog.Logger, actors ...Actor) error {
	var group run.Group
	group.Add(run.SignalHandler(context.Background(), StopSignals()...))
	for _, actor := range actors {
		ctx, cancel := context.WithCancel(context.Background())
		group.Add(func() error { return actor(ctx) }, func(error) { cancel() })
	}
	err := group.Run()
	if errors.Is(err, run.ErrSignal) {
		log.Info("stopped", "why", err)
		return nil
	}
	return err
}

// Worded is an error with a text for a person in place of its own.
type Worded struct {
	Text string
	Err  error
}

// Error implements error.
func (w Worded) Error() string { return w.Text }

// Unwrap returns the error itself.
func (w Worded) Unwrap() error { return w.Err }

// WaitedInVain reports whether an error means that no answer came in time.
func WaitedInVain(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout)
}

// Plain replaces Go's "context deadline exceeded" by words that a person understands, and makes the
// process end with code 3. It returns any other error as it is.
func Plain(err error) error {
	if !WaitedInVain(err) && !errors.Is(err, context.Canceled) {
		return err
	}
	const late = "no answer in time"
	words := strings.NewReplacer(context.DeadlineExceeded.Error(), late, nats.ErrTimeout.Error(), late, context.Canceled.Error(), "interrupted")
	return Unreachable(Worded{words.Replace(err.Error()), err})
}

// relaxedGOGC is a default of GOGC. Go's own is 100.
const relaxedGOGC = 600

// RelaxGC lets the heap grow to seven times what is live in it before it is collected; Go's own
// default is twice. It is for a process that needs little memory however many services there are,
// and not for Auth, which has all of them in its memory. GOGC and GOMEMLIMIT override it.
func RelaxGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(relaxedGOGC)
	}
}
