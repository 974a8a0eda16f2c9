package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"omiappreg.org/keyrotation/internal/testenv"
)

// The faults that only a database server has.
const (
	crashOfServer   = "crash of the database"
	restartOfServer = "restart of the database"
	lossOfQuorum    = "loss of the quorum"
)

// sqlServer holds the databases of a stand. A stand on SQLite has none.
type sqlServer interface {
	// create makes an empty database, and returns its URL at this host.
	create(name, host string) string
	// way makes a new way to the server, which is where one party connects: a proxy for each node.
	way() (host string, proxies []*testenv.Proxy)
	// ends are the faults that end it or a part of it, by their names. Each returns how the server
	// starts again.
	ends() map[string]func(*rand.Rand) (start func() error, err error)
}

// newServer starts the server of an engine. It returns nil if the engine has none.
func newServer(t *testing.T, engine string, addrs []string) sqlServer {
	t.Helper()
	switch engine {
	case testenv.Postgres:
		return &postgres{PostgresServer: testenv.NewPostgresServer(t), t: t}
	case testenv.Cockroach:
		return newCockroach(t, addrs)
	}
	return nil
}

// postgres is one PostgreSQL server.
type postgres struct {
	*testenv.PostgresServer
	t    *testing.T
	ways []*testenv.Proxy
}

func (p *postgres) create(name, host string) string { return p.CreateDatabase(name, host) }

func (p *postgres) way() (string, []*testenv.Proxy) {
	way := testenv.NewProxy(p.t, p.Addr())
	p.ways = append(p.ways, way)
	return way.Addr(), []*testenv.Proxy{way}
}

func (p *postgres) ends() map[string]func(*rand.Rand) (func() error, error) {
	return map[string]func(*rand.Rand) (func() error, error){
		crashOfServer:   func(*rand.Rand) (func() error, error) { return p.restart, p.Crash() },
		restartOfServer: func(*rand.Rand) (func() error, error) { return p.restart, p.Halt() },
	}
}

// restart starts the server, which listens on another port then.
func (p *postgres) restart() error {
	if err := p.Start(); err != nil {
		return err
	}
	for _, way := range p.ways {
		way.Retarget(p.Addr())
	}
	return nil
}

// cockroach is a cluster of CockroachDB whose nodes have their stores on disk. Each range has a
// replica on each node, so with two nodes down none has a quorum.
type cockroach struct {
	t     *testing.T
	nodes []*node
	made  int // ways
}

// nodesOfCockroach is the number of nodes, and of the addresses that they need.
const nodesOfCockroach = 3

// newCockroach starts a cluster that listens at these addresses, with the program cockroach on
// PATH.
func newCockroach(t *testing.T, addrs []string) *cockroach {
	t.Helper()
	program, err := exec.LookPath("cockroach")
	if err != nil {
		testenv.Missing(t, testenv.Cockroach, err)
	}
	c, folder := &cockroach{t: t}, t.ArtifactDir()
	for i, addr := range addrs {
		name := fmt.Sprintf("cockroach-%d", i+1)
		c.nodes = append(c.nodes, &node{addr: addr, daemon: &daemon{
			name: name, folder: folder, env: []string{"HOME=" + folder}, command: []string{
				program, "start", "--insecure", "--store=" + filepath.Join(folder, name),
				"--listen-addr=" + addr, "--http-addr=127.0.0.1:0", "--join=" + strings.Join(addrs, ","),
			},
		}})
	}
	t.Cleanup(func() { closeNodes(t, c.nodes) })
	if err := c.start(c.nodes); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	initialize := exec.CommandContext(ctx, program, "init", "--insecure", "--host="+addrs[0])
	initialize.Env = c.nodes[0].env
	if out, err := initialize.CombinedOutput(); err != nil {
		t.Fatalf("cockroach init: %v\n%s", err, out)
	}
	return c
}

// start starts nodes, and waits until they serve clients.
func (c *cockroach) start(nodes []*node) error {
	var errs []error
	for _, n := range nodes { // all of them first: one alone has no quorum
		errs = append(errs, n.start())
	}
	for _, n := range nodes {
		errs = append(errs, n.up())
	}
	return errors.Join(errs...)
}

func (c *cockroach) create(name, host string) string {
	c.t.Helper()
	testenv.Eventually(c.t, patience, "the database is created", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), asking)
		defer cancel()
		conn, err := pgx.Connect(ctx, cockroachURL(c.nodes[0].addr, "defaultdb"))
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+name)
		return errors.Join(err, conn.Close(ctx))
	})
	return cockroachURL(host, name)
}

func cockroachURL(host, name string) string {
	return (&url.URL{Scheme: "postgres", User: url.User("root"), Host: host, Path: "/" + name, RawQuery: "sslmode=disable"}).String()
}

// way leads to all nodes. Each way begins with another node.
func (c *cockroach) way() (string, []*testenv.Proxy) {
	var hosts []string
	var proxies []*testenv.Proxy
	for i := range c.nodes {
		proxy := testenv.NewProxy(c.t, c.nodes[(c.made+i)%len(c.nodes)].addr)
		hosts, proxies = append(hosts, proxy.Addr()), append(proxies, proxy)
	}
	c.made++
	return strings.Join(hosts, ","), proxies
}

func (c *cockroach) ends() map[string]func(*rand.Rand) (func() error, error) {
	kill := func(count int) func(*rand.Rand) (func() error, error) {
		return func(dice *rand.Rand) (func() error, error) { return c.end(dice, count, (*daemon).kill9) }
	}
	return map[string]func(*rand.Rand) (func() error, error){
		crashOfServer: kill(1),
		lossOfQuorum:  kill(2),
		restartOfServer: func(dice *rand.Rand) (func() error, error) {
			return c.end(dice, 1, func(d *daemon) error { return d.ends(syscall.SIGTERM, 0) })
		},
	}
}

// end ends some of the nodes.
func (c *cockroach) end(dice *rand.Rand, count int, how func(*daemon) error) (func() error, error) {
	var chosen []*node
	var errs []error
	for _, i := range dice.Perm(len(c.nodes))[:count] {
		chosen, errs = append(chosen, c.nodes[i]), append(errs, how(c.nodes[i].daemon))
	}
	return func() error { return c.start(chosen) }, errors.Join(errs...)
}

// TestChaosEngines: a list names known engines only, and each of them once.
func TestChaosEngines(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][]string{
		"":                          {testenv.SQLite, testenv.Postgres},
		"cockroach":                 {testenv.Cockroach},
		"cockroach,sqlite,postgres": {testenv.Cockroach, testenv.SQLite, testenv.Postgres},
		"oracle":                    nil, "sqlite,": nil, "sqlite,sqlite": nil, "sqlite, postgres": nil,
	} {
		engines, asked, err := enginesOf(list)
		if !slices.Equal(engines, want) || asked != (want != nil && list != "") || (err != nil) != (want == nil) {
			t.Errorf("%q: %q, %t, %v", list, engines, asked, err)
		}
	}
}
