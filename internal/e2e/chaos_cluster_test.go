package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/testenv"
)

const nodesOfCluster = 3

// cluster is three nats-server processes with JetStream. The ways between them go through proxies,
// one for each direction, and so does every way of a client. The nodes do not advertise their real
// addresses.
type cluster struct {
	t      *testing.T
	nodes  []*node
	direct *nats.Conn // of the test, around all faults
	js     jetstream.JetStream
}

type node struct {
	*daemon
	addr string           // where clients connect
	ways []*testenv.Proxy // of the routes to it and from it; none: a node of CockroachDB
}

// portsOfCluster is how many addresses a cluster needs: of each node one for clients, and one for
// the other nodes.
const portsOfCluster = 2 * nodesOfCluster

// newCluster starts a cluster that listens at these addresses.
func newCluster(t *testing.T, addrs []string) *cluster {
	t.Helper()
	c := &cluster{t: t}
	folder := t.ArtifactDir()
	var routes, urls []string
	for i := range nodesOfCluster {
		name := fmt.Sprintf("node-%d", i+1)
		n := &node{addr: addrs[2*i], daemon: &daemon{
			name: name, folder: folder, env: []string{}, command: []string{faultsFolder + "/nats-server", "-c", name + ".conf"},
		}}
		c.nodes, routes, urls = append(c.nodes, n), append(routes, addrs[2*i+1]), append(urls, "nats://"+n.addr)
	}
	for i, n := range c.nodes {
		var others []string
		for j, to := range c.nodes {
			if i != j {
				way := testenv.NewProxy(t, routes[j])
				n.ways, to.ways = append(n.ways, way), append(to.ways, way)
				others = append(others, fmt.Sprintf("%q", "nats-route://"+way.Addr()))
			}
		}
		// What it advertises to the others leads nowhere: they shall come by their own ways.
		config := fmt.Sprintf(`server_name: %q
listen: %q
jetstream: { store_dir: %q }
cluster: { name: "chaos", listen: %q, advertise: "127.0.0.1:1", no_advertise: true, routes: [%s] }
`, n.name, n.addr, filepath.Join(folder, n.name), routes[i], strings.Join(others, ", "))
		if err := os.WriteFile(filepath.Join(folder, n.name+".conf"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { closeNodes(t, c.nodes) })
	for _, n := range c.nodes {
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitUp()
	c.direct = testenv.Connect(t, strings.Join(urls, ","))
	var err error
	if c.js, err = jetstream.New(c.direct); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the cluster has a leader", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.js.AccountInfo(ctx)
		return err
	})
	return c
}

// up waits until a node that was started serves clients. If another program took its port while it
// was down, the node ends, and is started again.
func (n *node) up() error {
	return eventually(func() error {
		conn, err := net.DialTimeout("tcp", n.addr, time.Second)
		if err == nil {
			return conn.Close()
		}
		if n.running() != nil {
			if again := n.start(); again != nil {
				return fatal{again}
			}
		}
		return err
	})
}

func (c *cluster) awaitUp() {
	c.t.Helper()
	for _, n := range c.nodes {
		if err := n.up(); err != nil {
			c.t.Fatalf("%s: %v", n.name, err)
		}
	}
}

// closeNodes ends nodes, and shows the end of what they said if the test has failed.
func closeNodes(t *testing.T, nodes []*node) {
	t.Helper()
	const tail = 4 << 10
	for _, n := range nodes {
		n.stop()
		if log, err := os.ReadFile(n.log()); err == nil && t.Failed() {
			t.Logf("%s said at last:\n%s", n.name, log[max(0, len(log)-tail):])
		}
	}
}

// leader is the node that leads a stream now; any node while there is none.
func (c *cluster) leader(stream string, dice *rand.Rand) *node {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fallback := c.nodes[dice.IntN(len(c.nodes))]
	s, err := c.js.Stream(ctx, stream)
	if err != nil || s.CachedInfo().Cluster == nil {
		return fallback
	}
	for _, n := range c.nodes {
		if n.name == s.CachedInfo().Cluster.Leader {
			return n
		}
	}
	return fallback
}

// whole waits until every node has everything of the streams.
func (c *cluster) whole(streams ...string) {
	c.t.Helper()
	for _, name := range streams {
		testenv.Eventually(c.t, patience, "every node has all of "+name, func() error {
			ctx, cancel := context.WithTimeout(c.t.Context(), patience/12) // an answer may get lost
			defer cancel()
			s, err := c.js.Stream(ctx, name)
			if err != nil {
				return err
			}
			info := s.CachedInfo().Cluster
			if info == nil || info.Leader == "" || len(info.Replicas) != nodesOfCluster-1 {
				return fmt.Errorf("%+v", info)
			}
			for _, r := range info.Replicas {
				if !r.Current || r.Offline || r.Lag > 0 {
					return fmt.Errorf("%+v", *r)
				}
			}
			return nil
		})
	}
}

// each hands over every message that a stream holds, in its order. Any node may be asked for any of
// them, so they must be whole.
func (c *cluster) each(stream string, do func(subject string, payload []byte)) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*patience)
	defer cancel()
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		c.t.Fatal(err)
	}
	count, want := uint64(0), s.CachedInfo().State.Msgs
	for next := uint64(1); ; {
		msg, err := s.GetMsg(ctx, next, jetstream.WithGetMsgSubject(s.CachedInfo().Config.Subjects[0]))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			c.t.Fatalf("read the stream %s: %v", stream, err)
		}
		do(msg.Subject, msg.Data)
		count, next = count+1, msg.Sequence+1
	}
	if count != want {
		c.t.Errorf("the stream %s gave %d messages, and says that it has %d", stream, count, want)
	}
}
