package e2e_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/testenv"
)

// secured is a deployment on the broker of deploy/nats, where everybody has an nkey and the rights
// of one role.
type secured struct {
	t      *testing.T
	folder string
	broker *testenv.SecuredBroker
	env    []string // of everybody
}

// run runs a program as a user of the broker, with an exit code that must be this, and returns what
// it prints.
func (s *secured) run(code int, user, program string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(binaries, program), args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.folder, s.as(user), &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		s.t.Fatalf("%s: %s %v: %v, want exit code %d\n%s%s", user, program, args, err, code, out.String(), errs.String())
	}
	return out.String()
}

func (s *secured) as(user string) []string {
	if user == "" {
		return s.env
	}
	return append([]string{"OMI_NATS_NKEY=" + s.broker.Seed(user)}, s.env...)
}

func (s *secured) start(user string, command ...string) *daemon {
	s.t.Helper()
	d := &daemon{name: user, folder: s.folder, env: s.as(user), command: command}
	if err := d.start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		d.stop()
		if log, err := os.ReadFile(d.log()); err == nil && s.t.Failed() {
			s.t.Logf("%s said:\n%s", d.name, log)
		}
	})
	return d
}

// expect holds a text against patterns, one for a line.
func (s *secured) expect(text string, patterns ...string) {
	s.t.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile("(?m)" + pattern).MatchString(text) {
			s.t.Errorf("no line matches %s in\n%s", pattern, text)
		}
	}
}

// TestSecured runs the real programs with the configuration of deploy/nats and the accounts that
// omi-registry prints. Tests of internal/access try what it forbids.
func TestSecured(t *testing.T) {
	t.Parallel()
	useSources(t)
	s := &secured{t: t, folder: t.TempDir()}
	s.env = []string{"HOME=" + s.folder, "OMI_APP_ID=org.example.shop", "OMI_SERVICE_ID=cms"}
	s.broker = testenv.NewSecuredBroker(t, func(nkey func(string) string) string {
		return s.run(0, "", "omi-registry", "nats", "service", "--app-id", "org.example.shop", "--service-id", "cms", "--nkey", nkey("cms")) +
			s.run(0, "", "omi-registry", "nats", "service", "--app-id", "org.example.shop", "--service-id", "blog", "--nkey", nkey("blog")) +
			s.run(0, "", "omi-registry", "nats", "developer", "--app-id", "org.example.shop", "--nkey", nkey("developer"))
	})
	s.env = append(s.env, "OMI_NATS_URL="+s.broker.URL(), "OMI_NATS_CA="+s.broker.CA(), "OMI_HTTP_ADDR=127.0.0.1:0", instanceEnv)
	registryKey := lastLine(s.run(0, "", "omi-registry", "keygen", "--out", "registry.pem"))
	master := lastLine(s.run(0, "", "omi", "keygen", "--out", "master.pem"))
	s.run(0, "", "omi-registry", "app", "add", "--app-id", "org.example.shop", "--master-key", master)
	s.env = append(s.env, "OMI_TRUST="+registryKey)

	processes := []*daemon{
		s.start("REGISTRY", "omi-registry", "--signing-key", "registry.pem"),
		s.start("AUTHSUB", "omi-authsub"), s.start("BILLINGSUB", "omi-billingsub"),
	}
	for _, p := range processes {
		testenv.Eventually(t, patience, p.name, p.ready)
	}
	watch := s.start("OPERATOR", "omi", "watch", "--all", "--json")

	// A developer binds, a service rotates, and everybody hears of it.
	for _, service := range []string{"cms", "blog"} {
		s.run(0, "developer", "omi", "bind", "--service-id", service, "--master-key", "master.pem", "--key", service+".pem")
		s.expect(s.run(0, service, "omi", "rotate", "--service-id", service, "--key", service+".pem", "--wait", "propagated"), "authsub-one", "billingsub")
	}
	for _, user := range []string{"cms", "developer", "OPERATOR"} {
		s.expect(s.run(0, user, "omi", "status"), "active", "sequence +2")
		s.expect(s.run(0, user, "omi", "history"), "KEY_ROTATION")
	}
	s.run(0, "cms", "omi", "pin", "add")
	s.run(0, "cms", "omi", "pin", "check", "--key", "cms.pem")
	signature := lastLine(s.run(0, "", "omi", "sign", "--key", "cms.pem", "--in", "cms.pem"))
	s.expect(s.run(0, "blog", "omi", "verify", "--signature", signature, "--in", "cms.pem"), "^accepted")
	s.expect(s.run(0, "blog", "omi", "verify", "--signature", signature, "--in", "cms.pem", "--registry"), "^accepted")
	s.run(0, "developer", "omi", "reset", "--master-key", "master.pem", "--key", "cms.pem")
	s.run(0, "developer", "omi", "revoke", "--service-id", "blog", "--master-key", "master.pem")

	for _, service := range []string{"cms", "blog"} {
		testenv.Eventually(t, patience, "both subscribers have applied all", func() error {
			said := s.run(0, "OPERATOR", "omi", "status", "--service-id", service)
			if strings.Count(said, "has applied the last change") != 2 {
				return errors.New(said)
			}
			return nil
		})
	}

	// What doctor says of each account is what the account is for.
	const forged = "^ok +publish (invalidations|receipts) +not allowed, as it should be"
	service := s.run(0, "cms", "omi", "doctor", "--key", "cms.pem")
	s.expect(service, "^ok +broker .* by TLS", "^ok +publish rotation +allowed", "^ok +publish binding +not allowed",
		"^ok +publish revocation +not allowed", "^ok +read receipts +allowed", "^warning +storage +unknown: ", forged)
	s.expect(s.run(0, "developer", "omi", "doctor", "--master-key", "master.pem"),
		"^ok +publish binding +allowed", "^ok +publish revocation +allowed", "^ok +read receipts +allowed", forged)
	operator := s.run(0, "OPERATOR", "omi", "doctor")
	s.expect(operator, "^ok +jetstream ", "^ok +storage ", "^ok +stream OMI_REQUESTS ", "^ok +durable authsub-one ", "^ok +billing ",
		"^ok +publish rotation +not allowed", "^ok +publish binding +not allowed", forged)
	for _, text := range []string{service, operator} {
		if strings.Contains(text, "\nwrong") {
			t.Errorf("something is wrong:\n%s", text)
		}
	}
	// Another service's account is told what it lacks.
	s.expect(s.run(1, "blog", "omi", "doctor", "--key", "cms.pem"), "^wrong +publish rotation +this account may not", "^wrong +read receipts ")

	testenv.Eventually(t, patience, "watch", func() error {
		said, err := os.ReadFile(watch.out())
		if err == nil && (!bytes.Contains(said, []byte("MASTER_RESET")) || !bytes.Contains(said, []byte(`"receipt"`))) {
			err = errors.New("not all is shown")
		}
		return err
	})
	// A subscriber whose database is lost may do all that it needs to read the stream again.
	for _, p := range processes[1:] {
		if err := p.interrupt(); err != nil {
			t.Fatal(err)
		}
		p.command = append(p.command, "--database-url", "sqlite:new-"+p.name+".db")
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, patience, p.name+" with a new database", p.ready)
	}
	for _, p := range append(processes, watch) {
		if err := p.interrupt(); err != nil {
			t.Error(err)
		}
		// The broker tells who was refused something: these have all that they need.
		if log, err := os.ReadFile(p.log()); err != nil || bytes.Contains(log, []byte("ermissions")) {
			t.Errorf("%s: %v\n%s", p.name, err, log)
		}
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// TestTrial makes a broker's configuration as deploy/nats says, by its script, and looks whether a
// server takes it, and the example of a node's settings with it.
func TestTrial(t *testing.T) {
	t.Parallel()
	useSources(t)
	if _, err := exec.LookPath("openssl"); err != nil {
		testenv.Missing(t, testenv.OpenSSL, err)
	}
	folder, deploy := filepath.Join(t.TempDir(), "trial"), filepath.Join("..", "..", "deploy", "nats")
	script := exec.Command(filepath.Join(deploy, "trial"), folder)
	script.Env = []string{"PATH=" + binaries + string(os.PathListSeparator) + os.Getenv("PATH")}
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	settings := filepath.Join(folder, "settings.conf")
	rewrite(t, settings, settings, "127.0.0.1:4222", "127.0.0.1:-1") // that one may be taken
	broker := testenv.ServeConfig(t, filepath.Join(folder, "nats-server.conf"))
	nats := process.NATS{
		URL: "tls://" + broker.Addr().String(), CA: filepath.Join(folder, "ca.pem"), NKey: filepath.Join(folder, "cms.nk"),
	}
	nc, err := nats.ConnectNow(t.Context(), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()

	rewrite(t, filepath.Join(deploy, "settings.example.conf"), settings, "/etc/nats/", folder+"/")
	opts, err := server.ProcessConfigFile(filepath.Join(folder, "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if !opts.SyncAlways || opts.TLSConfig == nil || len(opts.Routes) != 3 || opts.Cluster.TLSConfig == nil {
		t.Errorf("the example of a node is not what it says: %+v", opts)
	}
}

func rewrite(t *testing.T, from, to, before, after string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, bytes.ReplaceAll(text, []byte(before), []byte(after)), 0o600); err != nil {
		t.Fatal(err)
	}
}
