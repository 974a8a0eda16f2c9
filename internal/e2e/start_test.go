package e2e_test

import (
	"net"
	"net/url"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestStartWhileTheDatabaseRestarts: each process starts though its connections to the database
// break at each step: in the handshake, while the schema is made, and in what the process reads
// then. None ends.
func TestStartWhileTheDatabaseRestarts(t *testing.T) {
	t.Parallel()
	useSources(t)
	broker := testenv.NewBroker(t)
	folder := t.TempDir()
	key := events.GenerateSigningKey()
	if err := keyfile.Create(folder+"/registry.pem", key); err != nil {
		t.Fatal(err)
	}
	var processes []*daemon
	for name, command := range map[string][]string{
		"registry": {"omi-registry", "--signing-key", "registry.pem"},
		"auth":     {"omi-authsub", "--trust", key.Public().String()},
		"billing":  {"omi-billingsub", "--trust", key.Public().String()},
	} {
		u, err := url.Parse(testenv.Database(t, testenv.Postgres))
		if err != nil {
			t.Fatal(err)
		}
		proxy := testenv.NewProxy(t, net.JoinHostPort(u.Hostname(), u.Port()))
		proxy.Fragile(1)
		u.Host = proxy.Addr()
		command = append(command, "--nats-url", broker.URL(), "--http-addr", "127.0.0.1:0", "--database-url", u.String())
		d := &daemon{name: name, folder: folder, command: command, env: []string{"HOME=" + folder}}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.stop)
		processes = append(processes, d)
	}
	for _, d := range processes {
		if err := eventually(d.ready); err != nil {
			t.Error(err)
			continue
		}
		if err := d.interrupt(); err != nil {
			t.Error(err)
		}
	}
}
