package e2e_test

import (
	"os"
	"path/filepath"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/testenv"
)

// rekeyed is a deployment whose registry has a signing key, and another to change to. Clients trust
// both.
type rekeyed struct {
	*deployment
	broker       *testenv.Broker
	before, next events.SigningKey // registry.pem, next.pem
	trustFile    string            // names the first one
}

func newRekeyed(t *testing.T) *rekeyed {
	t.Helper()
	broker := testenv.NewBroker(t)
	d := prepare(t, testenv.Database(t, testenv.SQLite), testenv.Connect(t, broker.URL()))
	r := &rekeyed{deployment: d, broker: broker, trustFile: filepath.Join(d.folder, "trusted.txt")}
	d.command("keygen", "--out", "next.pem")
	r.before, r.next = r.key("registry.pem"), r.key("next.pem")
	var err error
	if d.trust, err = events.NewTrust(origin, r.before.Public(), r.next.Public()); err != nil {
		t.Fatal(err)
	}
	r.write(r.before.Public().String() + "\n")
	t.Cleanup(d.close)
	return r
}

func (r *rekeyed) key(file string) events.SigningKey {
	r.t.Helper()
	key, err := keyfile.Read(filepath.Join(r.folder, file))
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

// write replaces what is in the trust file.
func (r *rekeyed) write(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.trustFile, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// start starts a process with one more variable, and waits until it is ready.
func (r *rekeyed) start(name, trust string, command ...string) *daemon {
	r.t.Helper()
	env := []string{trust, "OMI_NATS_URL=" + r.broker.URL(), "OMI_HTTP_ADDR=127.0.0.1:0", instanceEnv}
	p := &daemon{name: name, folder: r.folder, env: env, command: command}
	if err := p.start(); err != nil {
		r.t.Fatal(err)
	}
	r.processes = append(r.processes, p)
	testenv.Eventually(r.t, patience, name+" is ready", p.ready)
	return p
}

// startRegistry starts the registry with the key in a file.
func (r *rekeyed) startRegistry(name, trust, file string) *daemon {
	r.t.Helper()
	return r.start(name, trust, "omi-registry", "--signing-key", file, "--database-url", r.url)
}

func (r *rekeyed) interrupt(p *daemon) {
	r.t.Helper()
	if err := p.interrupt(); err != nil {
		r.t.Fatal(err)
	}
}
