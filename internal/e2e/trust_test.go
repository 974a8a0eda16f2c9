package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestTrustComesLater: the registry gets another signing key before its subscribers are told. What
// it signs then is not called applied, and no client switches to a key that Auth refuses; a flood
// of foreign messages comes on top. Auth is told by its trust file while it runs, and Billing by a
// restart: each applies what it had set aside, and then the client switches.
func TestTrustComesLater(t *testing.T) {
	t.Parallel()
	useSources(t)
	r := newRekeyed(t)
	d, before, after := r.deployment, r.before.Public().String(), r.next.Public().String()
	d.registry = r.startRegistry("registry", "OMI_TRUST="+before, "registry.pem")
	d.auth = r.start("auth", "OMI_TRUST_FILE="+r.trustFile, "omi-authsub")
	d.billing = r.start("billing", "OMI_TRUST="+before, "omi-billingsub")
	s := newDomain(t, d, "cms")
	s.bind()

	r.interrupt(d.registry)
	d.registry = r.startRegistry("registry-2", "OMI_TRUST="+before, "next.pem")
	c := s.open(s.store())
	first := s.accepted(c)
	if _, err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	flood(t, d, events.GenerateSigningKey())
	applied := func(auth, billing bool) {
		t.Helper()
		want := fmt.Sprintf("auth %t, billing %t", auth, billing)
		testenv.Eventually(t, patience, want, func() error {
			got := map[string]bool{}
			for durable, has := range s.record().Propagation {
				name, _, _ := strings.Cut(durable, "-")
				got[name] = has
			}
			if len(got) != 2 || got[streams.AuthDurable] != auth || got[streams.BillingDurable] != billing {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	}
	signsWithFirst := func() {
		t.Helper()
		if got := s.accepted(c); got.PublicKey != first.PublicKey {
			t.Errorf("the client signs with %s, want the first key", got.PublicKey)
		}
	}
	d.setAside(t, d.auth, "or more")
	d.setAside(t, d.billing, "or more")
	applied(false, false)
	signsWithFirst()
	out, err := d.doctor(before)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 ||
		strings.Count(out, " does not trust the registry's current key, and sets its events aside: "+after) != 2 {
		t.Errorf("omi doctor: %v\n%s", err, out)
	}

	r.write("what is this?\n") // changes nothing
	r.write(before + "\n" + after + "\n")
	applied(true, false)
	signsWithFirst()
	r.interrupt(d.billing)
	d.billing = r.start("billing-2", "OMI_TRUST="+before+","+after, "omi-billingsub")
	applied(true, true)
	s.settled(c, 2)
	if got := s.accepted(c); got.Key != events.KeyCurrent || got.Sequence != 2 {
		t.Errorf("Auth says %+v", got)
	}
	_, public := c.Signer().Key()
	got := ask[events.AttributeAnswer](d, d.billing, "/v1/attribute", map[string]any{"public_key": public, "at": s.record().Current.Since})
	if got.Result != events.Valid {
		t.Errorf("Billing says %+v", got)
	}
	if out, err = d.doctor(before + "," + after); err != nil || strings.Count(out, "has set aside messages from sequence") != 2 {
		t.Errorf("omi doctor: %v\n%s", err, out)
	}
}

// flood publishes more messages than subscribers keep of what they set aside: events that a
// stranger signed.
func flood(t *testing.T, d *deployment, stranger events.SigningKey) {
	t.Helper()
	for i := range 22 {
		s := subtest.NewService(t, fmt.Sprint("flood-", i))
		for n := range 50 {
			e := s.Bind(1_705_412_600 + int64(n))
			if _, err := d.js.PublishAsync(e.Subject(), e.Sign(stranger)); err != nil {
				t.Fatal(err)
			}
		}
	}
	<-d.js.PublishAsyncComplete()
}

// setAside waits until a subscriber says how many events it has set aside, and why. It stays
// healthy.
func (d *deployment) setAside(t *testing.T, p *daemon, many string) {
	t.Helper()
	testenv.Eventually(t, patience, p.name+" says what it has set aside", func() error {
		response, err := p.do(http.MethodGet, "/healthz", "")
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK ||
			!strings.HasPrefix(string(body), "ok\nset aside, unknown_registry_key: 1000 "+many+" (events by a registry key that is not trusted: ") {
			return fmt.Errorf("%s: %q: %w", response.Status, body, err)
		}
		return nil
	})
}

// doctor runs omi doctor, which trusts these keys.
func (d *deployment) doctor(trust string) (string, error) {
	command := exec.Command(filepath.Join(binaries, "omi"), "doctor", "--trust", trust)
	command.Dir, command.Env = d.folder, []string{"OMI_NATS_URL=" + d.js.Conn().ConnectedUrl()}
	out, err := command.Output()
	return string(out), err
}
