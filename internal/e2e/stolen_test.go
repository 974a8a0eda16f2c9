package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestStolenRegistryKey: the registry's key was stolen, and changed. Its thief resets a service by an event of his own. Auth and the
// registry know where the key has ended: Auth sets the event aside, the registry serves the service, and recover passes the event
// over. Where recover is not told of the end, it says whose signature the change rests on, and writes nothing.
func TestStolenRegistryKey(t *testing.T) {
	t.Parallel()
	useSources(t)
	broker := testenv.NewBroker(t)
	d := prepare(t, testenv.Database(t, testenv.SQLite), testenv.Connect(t, broker.URL()))
	d.command("keygen", "--out", "next.pem")
	key := func(file string) events.SigningKey {
		key, err := keyfile.Read(filepath.Join(d.folder, file))
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	stolen, next := key("registry.pem"), key("next.pem")
	var err error
	if d.trust, err = events.NewTrust(origin, stolen.Public(), next.Public()); err != nil {
		t.Fatal(err)
	}
	trustFile := filepath.Join(d.folder, "trusted.txt")
	if err := os.WriteFile(trustFile, []byte(stolen.Public().String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"OMI_NATS_URL=" + broker.URL(), "OMI_HTTP_ADDR=127.0.0.1:0", instanceEnv}
	start := func(name, trust string, command ...string) *daemon {
		p := &daemon{name: name, folder: d.folder, env: append([]string{trust}, env...), command: command}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		d.processes = append(d.processes, p)
		testenv.Eventually(t, patience, name+" is ready", p.ready)
		return p
	}
	t.Cleanup(d.close)
	d.registry = start("registry", "OMI_TRUST="+stolen.Public().String(), "omi-registry", "--signing-key", "registry.pem", "--database-url", d.url)
	d.auth = start("auth", "OMI_TRUST_FILE="+trustFile, "omi-authsub")
	d.billing = start("billing", "OMI_TRUST_FILE="+trustFile, "omi-billingsub")
	s := newDomain(t, d, "cms")
	s.bind()
	record := s.record()

	if err := d.registry.interrupt(); err != nil {
		t.Fatal(err)
	}
	stream, err := d.js.Stream(t.Context(), events.InvalidationStream)
	if err != nil {
		t.Fatal(err)
	}
	ended := events.TrustedKey{
		PublicKey: stolen.Public(), End: events.End{Time: time.Now().Add(time.Hour).Unix(), Place: stream.CachedInfo().State.LastSeq},
	}.String()
	if err := os.WriteFile(trustFile, []byte(next.Public().String()+"\n"+ended+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*daemon{d.auth, d.billing} {
		testenv.Eventually(t, patience, p.name+" has read its trust file again", func() error {
			log, err := os.ReadFile(p.log())
			if err == nil && !strings.Contains(string(log), "trusting other registry keys from now on") {
				err = errors.New("not yet")
			}
			return err
		})
	}
	forged := events.Invalidation{
		Origin: origin, Target: s.target, Event: events.MasterReset, OldKey: record.Current.PublicKey, NewKey: events.GenerateSigningKey().Public(),
		GracePeriodExpiry: record.Timestamp, Timestamp: record.Timestamp, Nonce: events.NewNonce(), Sequence: 2,
	}
	if _, err := d.js.Publish(t.Context(), forged.Subject(), forged.Sign(stolen)); err != nil {
		t.Fatal(err)
	}
	recovered := func(trust string) (string, int) {
		command := exec.Command(filepath.Join(binaries, "omi-registry"), "recover", "--signing-key", "next.pem",
			"--database-url", d.url, "--nats-url", broker.URL(), "--trust", trust)
		command.Dir, command.Env = d.folder, []string{}
		out, err := command.CombinedOutput()
		if command.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), command.ProcessState.ExitCode()
	}
	if out, code := recovered(stolen.Public().String()); code != 2 || !strings.Contains(out, "1 changes rest on the signature of "+stolen.Public().String()+", an earlier key:\n  "+s.target.String()+"  MASTER_RESET, sequence 2, ") ||
		!strings.Contains(out, "nothing is written") {
		t.Errorf("recover, not told of the end, ends with %d: %s", code, out)
	}
	if out, code := recovered(ended); code != 0 || !strings.Contains(out, "1 messages of the stream are signed by an earlier key after its end") ||
		!strings.Contains(out, "Recovered 0 changes") {
		t.Errorf("recover ends with %d: %s", code, out)
	}

	d.registry = start("registry-2", "OMI_TRUST="+ended, "omi-registry", "--signing-key", "next.pem", "--database-url", d.url)
	testenv.Eventually(t, patience, "Auth says what it has set aside", func() error {
		response, err := d.auth.do(http.MethodGet, "/healthz", "")
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(body), "set aside, ended_registry_key: 1 (") {
			err = fmt.Errorf("%q", body)
		}
		return err
	})
	c := s.open(s.store())
	s.accepted(c)
	if receipt, err := c.Rotate(t.Context()); err != nil || receipt.Sequence != 2 {
		t.Errorf("the service rotates: %+v, %v", receipt, err)
	}
	s.settled(c, 2)
	if got := s.accepted(c); got.Key != events.KeyCurrent || got.Sequence != 2 {
		t.Errorf("Auth says %+v", got)
	}
}
