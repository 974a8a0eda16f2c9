package e2e_test

import (
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite" // for sql

	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// world is what one script works with.
type world struct {
	t       testing.TB
	broker  *testenv.Broker
	daemons map[string]*daemon
}

// close ends what a script left running. The logs are what tells why it failed.
func (w *world) close() {
	for _, d := range w.daemons {
		d.stop()
		if log, err := os.ReadFile(d.log()); err == nil && w.t.Failed() {
			w.t.Logf("%s said:\n%s", d.name, log)
		}
	}
}

func (w *world) get(ts *testscript.TestScript, name string) *daemon {
	d, ok := w.daemons[name]
	if !ok {
		ts.Fatalf("no daemon %s was started", name)
	}
	return d
}

func (w *world) daemon(ts *testscript.TestScript, args []string) {
	d := &daemon{name: args[0], folder: ts.MkAbs(".")}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "OMI_NATS_URL", "OMI_INSTANCE"} {
		d.env = append(d.env, name+"="+ts.Getenv(name))
	}
	for args = args[1:]; len(args) > 1 && strings.Contains(args[0], "="); args = args[1:] {
		d.env = append(d.env, args[0])
	}
	d.command = args
	ts.Check(d.start())
	w.daemons[d.name] = d
}

func (w *world) waitReady(ts *testscript.TestScript, args []string) {
	d, text := w.get(ts, args[0]), ""
	if len(args) > 1 {
		text = args[1]
	}
	ts.Check(eventually(func() error { return d.readyWith(text) }))
}

func (w *world) kill9(ts *testscript.TestScript, args []string) { ts.Check(w.get(ts, args[0]).kill9()) }
func (w *world) restart(ts *testscript.TestScript, args []string) {
	ts.Check(w.get(ts, args[0]).start())
}

func (w *world) interrupt(ts *testscript.TestScript, args []string) { w.end(ts, os.Interrupt, args) }
func (w *world) hangUp(ts *testscript.TestScript, args []string)    { w.end(ts, syscall.SIGHUP, args) }

func (w *world) end(ts *testscript.TestScript, by os.Signal, args []string) {
	code := 0
	if len(args) > 1 {
		var err error
		code, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	ts.Check(w.get(ts, args[0]).ends(by, code))
}

func (w *world) http(ts *testscript.TestScript, args []string) {
	body := ""
	if len(args) > 3 {
		body = args[3]
	}
	d := w.get(ts, args[1])
	ts.Check(eventually(func() error { // a process says where it serves while it starts
		if err := d.running(); err != nil {
			return err
		}
		_, err := d.addr()
		return err
	}))
	response, err := d.do(args[0], args[2], body)
	ts.Check(err)
	defer func() { _ = response.Body.Close() }()
	fmt.Fprintln(ts.Stdout(), response.Status)
	for _, name := range slices.Sorted(maps.Keys(response.Header)) {
		fmt.Fprintf(ts.Stdout(), "%s: %s\n", name, response.Header.Get(name))
	}
	fmt.Fprintln(ts.Stdout())
	_, err = io.Copy(ts.Stdout(), response.Body)
	ts.Check(err)
}

func (w *world) waitFor(ts *testscript.TestScript, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	ts.Check(eventually(func() error {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return err
		}
		if !want.MatchString(ts.ReadFile("stdout")) {
			return fmt.Errorf("stdout does not match %s", want)
		}
		return nil
	}))
}

func (w *world) repeat(ts *testscript.TestScript, args []string) {
	want, split := regexp.MustCompile("(?m)"+args[0]), slices.Index(args, "--")
	if split < 2 || split+1 == len(args) {
		ts.Fatalf("repeat wants two programs")
	}
	ts.Check(eventually(func() error {
		ts.Check(ts.Exec(args[split+1], args[split+2:]...))
		ts.Check(ts.Exec(args[1], args[2:split]...))
		if !want.MatchString(ts.ReadFile("stdout")) {
			return fmt.Errorf("stdout does not match %s", want)
		}
		return nil
	}))
}

func (w *world) sql(ts *testscript.TestScript, args []string) {
	db, err := sql.Open("sqlite", "file:"+ts.MkAbs(args[0])+"?_pragma=busy_timeout(60000)")
	ts.Check(err)
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(w.t.Context(), args[1])
	ts.Check(err)
}

// expect runs a program that must end with a code.
func expect(ts *testscript.TestScript, want int, command []string) {
	got, ended := 0, (*exec.ExitError)(nil)
	if err := ts.Exec(command[0], command[1:]...); errors.As(err, &ended) {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func (w *world) exits(ts *testscript.TestScript, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	expect(ts, want, args[1:])
}

func (w *world) usage(ts *testscript.TestScript, args []string) {
	const usage, secret = 2, "s3cret"
	expect(ts, usage, args[1:])
	said := ts.ReadFile("stderr")
	switch line, rest, ended := strings.Cut(said, "\n"); {
	case ts.ReadFile("stdout") != "":
		ts.Fatalf("it prints to stdout although nothing was done")
	case !ended || rest != "":
		ts.Fatalf("not one line on stderr")
	case !strings.HasPrefix(line, filepath.Base(args[1])+": "):
		ts.Fatalf("the line does not begin with the program's name")
	case !strings.Contains(line, args[0]):
		ts.Fatalf("the line does not say %q", args[0])
	case strings.Contains(line, secret):
		ts.Fatalf("the line shows a password")
	}
}

func (w *world) capture(ts *testscript.TestScript, args []string) {
	found := regexp.MustCompile("(?m)" + args[2]).FindStringSubmatch(ts.ReadFile(args[1]))
	if len(found) != 2 {
		ts.Fatalf("%s has nothing that matches %s, with one group", args[1], args[2])
	}
	ts.Setenv(args[0], found[1])
}

func (w *world) sign(ts *testscript.TestScript, args []string) {
	key, err := keyfile.Read(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Setenv("MESSAGE", base64.RawURLEncoding.EncodeToString([]byte(args[1])))
	ts.Setenv("SIGNATURE", key.Sign([]byte(args[1])).String())
}

func (w *world) publish(ts *testscript.TestScript, args []string) {
	js, err := jetstream.New(testenv.Connect(w.t, w.broker.URL()))
	ts.Check(err)
	_, err = js.Publish(w.t.Context(), args[0], []byte(ts.ReadFile(args[1])))
	ts.Check(err)
}

// requests keeps requests from the registry, which goes on answering lookups: JetStream delivers
// none of them until release.
func (w *world) requests(ts *testscript.TestScript, args []string) {
	js, err := jetstream.New(testenv.Connect(w.t, w.broker.URL()))
	ts.Check(err)
	switch args[0] {
	case "hold":
		_, err = js.PauseConsumer(w.t.Context(), streams.Requests, streams.RegistryDurable, time.Now().Add(time.Hour))
	case "release":
		_, err = js.ResumeConsumer(w.t.Context(), streams.Requests, streams.RegistryDurable)
	default:
		ts.Fatalf("requests hold, or requests release")
	}
	ts.Check(err)
}

// streams deletes the streams of the broker. Without them, a registry can't tell that its database is
// an old one.
func (w *world) streams(ts *testscript.TestScript, args []string) {
	if args[0] != "lost" {
		ts.Fatalf("streams lost")
	}
	js, err := jetstream.New(testenv.Connect(w.t, w.broker.URL()))
	ts.Check(err)
	for _, name := range []string{streams.Requests, streams.Invalidations, streams.Receipts} {
		ts.Check(js.DeleteStream(w.t.Context(), name))
	}
}

func (w *world) switchBroker(ts *testscript.TestScript, args []string) {
	switch args[0] {
	case "start":
		w.broker.Start()
	case "stop":
		w.broker.Stop()
	default:
		ts.Fatalf("broker stop, or broker start")
	}
}
