package e2e_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// faultsFolder is where, below binaries, those programs are that only TestChaos needs.
const faultsFolder = "faults"

// party is one process, and its ways to whatever it talks to.
type party struct {
	*daemon
	database string
	clock    string           // of a registry: the file that moves it
	ways     []*testenv.Proxy // to each node of the cluster, and of the server if there is one
	broker   string           // the URL of the cluster, by these ways
}

// stand is everything that TestChaos breaks: the cluster, several processes of each kind, and the
// databases' server.
type stand struct {
	*deployment
	cluster *cluster
	server  sqlServer // nil: SQLite

	registries, auths, billings []*party
	services                    *party // those in the test's own process: ways without a daemon
}

func newStand(t *testing.T, engine string, addrs []string) *stand {
	t.Helper()
	s := &stand{server: newServer(t, engine, addrs[portsOfCluster:]), cluster: newCluster(t, addrs[:portsOfCluster])}
	registries := 2
	if s.server != nil {
		registries = 3
	}
	registry, billing := s.newDatabase("registry"), s.newDatabase("billing")
	s.deployment = prepare(t, registry, s.cluster.direct)
	t.Cleanup(s.close)
	for i := range registries {
		p := s.add(fmt.Sprintf("registry-%d", i+1), registry, faultsFolder+"/omi-registry",
			"--signing-key=registry.pem", "--rate-limit=-1", "--master-rate-limit=-1", "--master-quota=-1", "--stream-replicas=3")
		p.clock = filepath.Join(s.folder, p.name+".clock")
		p.env = append(p.env, "OMI_FAULTS_CLOCK="+p.clock)
		s.registries = append(s.registries, p)
	}
	s.auths = []*party{
		s.add("auth-1", s.newDatabase("auth"), "omi-authsub", "--instance=one"),
		s.add("auth-2", "sqlite:auth-2.db", "omi-authsub", "--instance=two"),
	}
	for i := range 2 { // which share everything
		s.billings = append(s.billings, s.add(fmt.Sprintf("billing-%d", i+1), billing, "omi-billingsub"))
	}
	s.durables = []string{authDurable, "authsub-two", streams.BillingDurable}
	s.services = &party{}
	s.connect(s.services)
	for _, p := range s.parties() {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}
	s.awaitReady()
	return s
}

// parties are all our processes.
func (s *stand) parties() []*party {
	var all []*party
	for _, some := range [][]*party{s.registries, s.auths, s.billings} {
		all = append(all, some...)
	}
	return all
}

// newDatabase returns the URL by which the test itself reaches a new database.
func (s *stand) newDatabase(name string) string {
	if s.server == nil {
		return "sqlite:" + name + ".db"
	}
	host, _ := s.server.way()
	return s.server.create(name, host)
}

// connect gives a party ways of its own to the cluster.
func (s *stand) connect(p *party) {
	var urls []string
	for _, n := range s.cluster.nodes {
		way := testenv.NewProxy(s.cluster.t, n.addr)
		p.ways, urls = append(p.ways, way), append(urls, "nats://"+way.Addr())
	}
	p.broker = strings.Join(urls, ",")
}

// add makes a process that is not started yet.
func (s *stand) add(name, database string, command ...string) *party {
	s.t.Helper()
	p := &party{database: database}
	s.connect(p)
	if u, err := url.Parse(database); err == nil && u.Scheme == "postgres" {
		host, ways := s.server.way()
		u.Host = host
		p.ways, database = append(p.ways, ways...), u.String()
	}
	p.daemon = &daemon{name: name, folder: s.folder, command: command, env: []string{
		"OMI_NATS_URL=" + p.broker, "OMI_DATABASE_URL=" + database, "OMI_HTTP_ADDR=127.0.0.1:0",
		"OMI_TRUST=" + s.registryKey().String(),
	}}
	s.processes = append(s.processes, p.daemon)
	return p
}

// moveClock moves a registry's clock away from the machine's.
func (p *party) moveClock(offset string) error {
	if err := os.WriteFile(p.clock+".new", []byte(offset), 0o600); err != nil {
		return err
	}
	return os.Rename(p.clock+".new", p.clock)
}

// file is the path of its SQLite database; empty: it has a server.
func (p *party) file() string {
	if name, ok := strings.CutPrefix(p.database, "sqlite:"); ok {
		return filepath.Join(p.folder, name)
	}
	return ""
}
