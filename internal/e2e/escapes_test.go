package e2e_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestEscapes: a user who may bind a service, publish, or create a durable chooses texts that
// operators see. On a terminal and in a log they are text only: they move no cursor, change no
// direction, begin no line, and are visible.
func TestEscapes(t *testing.T) {
	t.Parallel()
	d := newDeployment(t, testenv.Database(t, testenv.SQLite))
	target, err := events.ParseTarget(d.app.String() + ".cms")
	if err != nil {
		t.Fatal(err)
	}
	draft := events.Draft{Kind: events.Binding, Target: target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce(), NewKey: events.GenerateSigningKey()}
	draft.ServiceType = "x\x1b[2J\n  current    ed25519:FAKE"
	if _, err := draft.Sign(d.master); err == nil {
		t.Error("control characters in a service_type are refused by nobody")
	}
	draft.ServiceType, draft.EndpointURL = "x\u202egpj.exe\u3164", "https://cms.example/\u202egpj"
	request, err := draft.Sign(d.master)
	if err != nil {
		t.Fatal(err)
	}
	const strange = "evil\x1b[2J\u009b\u202e"
	if _, err := d.js.CreateConsumer(t.Context(), streams.Invalidations, jetstream.ConsumerConfig{Durable: strange}); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{events.InvalidationSubject + "a." + strange, events.ReceiptSubject + "a." + strange} {
		if _, err := d.js.Publish(t.Context(), subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.js.Publish(t.Context(), draft.Subject(), request); err != nil {
		t.Fatal(err)
	}
	env := []string{"OMI_NATS_URL=" + d.js.Conn().ConnectedUrl(), "OMI_APP_ID=" + d.app.String(), "OMI_SERVICE_ID=cms"}
	run := func(program string, args ...string) string {
		command := exec.Command(filepath.Join(binaries, program), args...)
		command.Dir, command.Env = d.folder, env
		out, err := command.CombinedOutput()
		if err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Fatal(err)
		}
		return string(out)
	}
	said := map[string]string{}
	testenv.Eventually(t, patience, "the service is bound", func() error {
		if said["status"] = run("omi", "status"); !strings.Contains(said["status"], "active") {
			return errors.New(said["status"])
		}
		return nil
	})
	if want := `type       x\u202egpj.exe\u3164`; !strings.Contains(said["status"], want) {
		t.Errorf("omi status says %q, and not %q", said["status"], want)
	}
	said["status --json"], said["doctor"] = run("omi", "status", "--json"), run("omi", "doctor")
	testenv.Eventually(t, patience, "the garbage is set aside", func() error {
		if said["set-aside"] = run("omi-authsub", "set-aside"); !strings.Contains(said["set-aside"], "1 messages") {
			return errors.New(said["set-aside"])
		}
		return nil
	})
	watch := &daemon{name: "watch", folder: d.folder, env: env[:1], command: []string{"omi", "watch", "--all"}}
	if err := watch.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.stop)
	testenv.Eventually(t, patience, "watch shows all", func() error {
		if said["watch"] = content(t, watch.out()); strings.Count(said["watch"], "untrusted") < 2 {
			return errors.New(said["watch"])
		}
		return nil
	})
	for _, p := range d.processes {
		said["the log of "+p.name] = content(t, p.log())
	}
	for what, text := range said {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && (!unicode.IsPrint(r) || r == '\u3164') }); i >= 0 {
			t.Errorf("%s holds %q", what, text[max(0, i-40):min(len(text), i+40)])
		}
		if !strings.Contains(text, "evil") && what == "watch" {
			t.Errorf("%s doesn't show what came: %s", what, text)
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
