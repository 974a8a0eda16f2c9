package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"omiappreg.org/keyrotation/internal/testenv"
)

// TestScripts runs testdata/script. Each script has its own broker, whose URL is in $OMI_NATS_URL.
// The programs are on its PATH, and $FREE_ADDR and $ANOTHER_ADDR are two addresses that are not in
// use. These commands are added to testscript's own:
//
//	daemon NAME [VAR=VALUE…] PROGRAM [ARG…]
//	                               starts a program in the background; it writes NAME.out and NAME.log
//	waitready NAME [TEXT]          waits until its /readyz says ok, and contains the text
//	kill9 NAME                     kills it with SIGKILL
//	restart NAME                   starts it again, as before
//	interrupt NAME [CODE]          SIGINT: it must stop, with exit code 0 or this one
//	hangup NAME [CODE]             SIGHUP: the same
//	http METHOD NAME PATH [BODY]   sends an HTTP request; stdout is the status, headers and body
//	waitfor REGEXP PROGRAM [ARG…]  runs a program until it succeeds and its stdout matches
//	repeat REGEXP PROGRAM [ARG…] -- PROGRAM [ARG…]
//	                               runs both, again and again, until the stdout of the first matches
//	sql FILE STATEMENT             changes a SQLite database without its process
//	exits CODE PROGRAM [ARG…]      runs a program that ends with this code
//	usage TEXT PROGRAM [ARG…]      runs a program that ends with code 2, and one line on stderr with TEXT
//	capture VAR FILE REGEXP        sets a variable to the first group; FILE may be stdout or stderr
//	sign KEYFILE TEXT              sets $MESSAGE and $SIGNATURE, for POST /v1/verify
//	publish SUBJECT FILE           publishes a file's content to JetStream
//	requests hold|release          keeps requests from the registry, which still answers lookups
//	streams lost                   deletes the streams of the broker
//	broker stop|start              stops the broker, and starts it again with its streams
func TestScripts(t *testing.T) {
	t.Parallel()
	useSources(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			w := &world{t: env.T().(testing.TB), daemons: map[string]*daemon{}}
			w.broker = testenv.NewBroker(w.t)
			env.Setenv("PATH", binaries+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("OMI_NATS_URL", w.broker.URL())
			env.Setenv("OMI_INSTANCE", "one") // of Auth, whose durable is authsub-one then
			addrs := testenv.FreeAddrs(w.t, 2)
			env.Setenv("FREE_ADDR", addrs[0])
			env.Setenv("ANOTHER_ADDR", addrs[1])
			env.Values[worldKey{}] = w
			env.Defer(w.close)
			return nil
		},
		Condition: condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon":    command((*world).daemon, 2, many),
			"waitready": command((*world).waitReady, 1, 2),
			"kill9":     command((*world).kill9, 1, 1),
			"restart":   command((*world).restart, 1, 1),
			"interrupt": command((*world).interrupt, 1, 2),
			"hangup":    command((*world).hangUp, 1, 2),
			"http":      command((*world).http, 3, 4),
			"waitfor":   command((*world).waitFor, 2, many),
			"repeat":    command((*world).repeat, 4, many),
			"sql":       command((*world).sql, 2, 2),
			"exits":     command((*world).exits, 2, many),
			"usage":     command((*world).usage, 2, many),
			"capture":   command((*world).capture, 3, 3),
			"sign":      command((*world).sign, 2, 2),
			"publish":   command((*world).publish, 2, 2),
			"requests":  command((*world).requests, 1, 1),
			"streams":   command((*world).streams, 1, 1),
			"broker":    command((*world).switchBroker, 1, 1),
		},
	})
}

// condition says whether all tests run in full, and what this user may do: root may give files
// away, and mounts needs a user who may have mounts of its own.
func condition(name string) (bool, error) {
	switch name {
	case "long":
		return testenv.Whole(true, false), nil
	case "root":
		return os.Geteuid() == 0, nil
	case "mounts":
		return exec.Command("unshare", "-rm", "true").Run() == nil, nil
	default:
		return false, fmt.Errorf("unknown condition %s", name)
	}
}

// many is no limit to the number of arguments.
const many = 1 << 10

// command makes a script's command of a method.
func command(run func(*world, *testscript.TestScript, []string), least, most int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, not bool, args []string) {
		if not || len(args) < least || len(args) > most {
			ts.Fatalf("wrong use of a command: see TestScripts")
		}
		run(ts.Value(worldKey{}).(*world), ts, args)
	}
}

// worldKey is where a script's values have its world.
type worldKey struct{}
