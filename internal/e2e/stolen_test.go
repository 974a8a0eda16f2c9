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
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestStolenRegistryKey: the registry's key was stolen, and changed. Its thief resets a service by
// an event of his own. Auth and the registry know where the key has ended: Auth sets the event
// aside, the registry serves the service, and recover passes the event over. Where recover is not
// told of the end, it says whose signature the change rests on, and writes nothing.
func TestStolenRegistryKey(t *testing.T) {
	t.Parallel()
	useSources(t)
	r := newRekeyed(t)
	d, stolen, next := r.deployment, r.before, r.next
	d.registry = r.startRegistry("registry", "OMI_TRUST="+stolen.Public().String(), "registry.pem")
	d.auth = r.start("auth", "OMI_TRUST_FILE="+r.trustFile, "omi-authsub")
	d.billing = r.start("billing", "OMI_TRUST_FILE="+r.trustFile, "omi-billingsub")
	s := newDomain(t, d, "cms")
	s.bind()
	record := s.record()

	r.interrupt(d.registry)
	stream, err := d.js.Stream(t.Context(), streams.Invalidations)
	if err != nil {
		t.Fatal(err)
	}
	ended := events.TrustedKey{
		PublicKey: stolen.Public(), End: events.End{Time: time.Now().Add(time.Hour).Unix(), Place: stream.CachedInfo().State.LastSeq},
	}.String()
	r.write(next.Public().String() + "\n" + ended + "\n")
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
			"--database-url", d.url, "--nats-url", r.broker.URL(), "--trust", trust)
		command.Dir, command.Env = d.folder, []string{}
		out, err := command.CombinedOutput()
		if command.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), command.ProcessState.ExitCode()
	}
	if out, code := recovered(stolen.Public().String()); code != 2 || !strings.Contains(out, "1 changes are signed by "+stolen.Public().String()+", an earlier key:\n  "+s.target.String()+"  MASTER_RESET, sequence 2, ") ||
		!strings.Contains(out, "nothing is written") {
		t.Errorf("recover, not told of the end, ends with %d: %s", code, out)
	}
	if out, code := recovered(ended); code != 0 || !strings.Contains(out, "1 messages of the stream are signed by an earlier key after its end") ||
		!strings.Contains(out, "Recovered 0 changes") {
		t.Errorf("recover ends with %d: %s", code, out)
	}

	d.registry = r.startRegistry("registry-2", "OMI_TRUST="+ended, "next.pem")
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
