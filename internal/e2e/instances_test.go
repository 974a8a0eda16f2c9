package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestInstances starts several processes of Auth, each on its own database or all on one, and two
// of Billing. Each Auth hears every event; and who would take events from another does not start.
func TestInstances(t *testing.T) {
	t.Parallel()
	useSources(t)
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} { // Auth's and Billing's
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			s := &instances{deployment: newDeployment(t, testenv.Database(t, testenv.SQLite)), engine: engine}
			if engine == testenv.Postgres {
				s.auths, s.billings = testenv.Database(t, engine), testenv.Database(t, engine)
			}
			s.run()
		})
	}
}

// instances is a deployment with more processes than one of each kind.
type instances struct {
	*deployment
	engine          string
	auths, billings string // the one database of each; empty: each has its own
}

// database is that of a new process.
func (s *instances) database(name, shared string) string {
	if shared != "" {
		return shared
	}
	return "sqlite:" + name + ".db"
}

// another starts one more process, with the same flags and environment.
func (s *instances) another(name, instance, database string, command ...string) *daemon {
	s.t.Helper()
	env := append(slices.Clone(s.auth.env), "OMI_INSTANCE="+instance, "OMI_DATABASE_URL="+database)
	p := &daemon{name: name, folder: s.folder, env: env, command: command}
	s.processes = append(s.processes, p)
	if err := p.start(); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// refused starts one that must not run, and end with code 2 and an error that names the process
// that it would disturb.
func (s *instances) refused(name, instance, database, program string, holder *daemon) {
	s.t.Helper()
	p := s.another(name, instance, database, program)
	select {
	case <-p.ended:
	case <-time.After(patience):
		s.t.Fatalf("%s runs", name)
	}
	log, err := os.ReadFile(p.log())
	if err != nil {
		s.t.Fatal(err)
	}
	who := fmt.Sprintf("process %d on host ", holder.cmd.Process.Pid)
	if code := p.cmd.ProcessState.ExitCode(); code != 2 || !bytes.Contains(log, []byte(who)) {
		s.t.Errorf("%s ended with code %d, want 2, and does not say %q:\n%s", name, code, who, log)
	}
	s.processes = slices.DeleteFunc(s.processes, func(other *daemon) bool { return other == p })
}

func (s *instances) run() {
	two := s.another("auth-2", "two", s.database("auth-2", s.auths), "omi-authsub")
	three := s.another("auth-3", "three", s.database("auth-3", s.auths), "omi-authsub")
	auths := []*daemon{s.auth, two, three}
	s.durables = append(s.durables, "authsub-two", "authsub-three")
	s.awaitReady()
	customer := s.customer()
	var services []*service
	for range 8 {
		services = append(services, s.bound(customer, len(services)))
	}
	s.settle() // all have heard of all keys
	s.refused("auth-twice", "two", "sqlite:twice.db", "omi-authsub", two)
	s.refused("auth-twice", "two", s.database("auth-2", s.auths), "omi-authsub", two)
	for _, one := range services {
		if err := customer.change(one, events.Reset, s.master); err != nil {
			s.t.Fatal(err)
		}
	}
	s.settle()
	s.propagated(services[0], "authsub-one", "authsub-three", "authsub-two", "billingsub")
	s.crash(two)
	s.forgotten(services[0])
	s.manyBillings(services)
	if err := s.registry.interrupt(); err != nil { // it would be asked about keys that are not known
		s.t.Error(err)
	}
	for _, auth := range auths {
		s.checkVerifying(auth, services)
	}
	s.stop()
}

func (s *instances) customer() *customer {
	inbox := newReceipts()
	if err := inbox.follow(s.t.Context(), s.js, s.trust); err != nil {
		s.t.Fatal(err)
	}
	return &customer{
		name: "customer", patient: true, dice: rand.New(rand.NewPCG(1, 2)), master: s.master, app: s.app, js: s.js, receipts: inbox,
		acknowledged: map[events.Nonce]struct{}{},
	}
}

func (s *instances) bound(c *customer, n int) *service {
	id, err := events.ParseServiceID(fmt.Sprintf("service-%d", n))
	if err != nil {
		s.t.Fatal(err)
	}
	one := &service{target: events.Target{App: s.app, Service: id}}
	if err := c.change(one, events.Binding, s.master); err != nil {
		s.t.Fatal(err)
	}
	return one
}

// propagated waits until the registry's record says of exactly these durables that they have
// applied the last change.
func (s *instances) propagated(one *service, durables ...string) {
	s.t.Helper()
	want := map[string]bool{}
	for _, durable := range durables {
		want[durable] = true
	}
	registry := registryclient.Registry{Conn: s.js.Conn(), Trust: s.trust}
	testenv.Eventually(s.t, patience, "propagation", func() error {
		record, err := registry.ServiceRecord(s.t.Context(), one.target)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, record.Propagation); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// crash: a process that was killed starts again at once, and its durable is the same.
func (s *instances) crash(p *daemon) {
	s.t.Helper()
	for range 3 {
		if err := errors.Join(p.kill9(), p.start()); err != nil {
			s.t.Fatal(err)
		}
	}
	s.awaitReady()
}

// forgotten: an instance that is gone does not hold up rotations for long.
func (s *instances) forgotten(one *service) {
	s.t.Helper()
	p := s.another("auth-4", "four", s.database("auth-4", s.auths), "omi-authsub", "--forget-after=1s")
	s.awaitReady()
	all := append(slices.Clone(s.durables), "authsub-four")
	s.propagated(one, all...)
	if err := p.kill9(); err != nil {
		s.t.Fatal(err)
	}
	s.processes = slices.DeleteFunc(s.processes, func(other *daemon) bool { return other == p })
	s.propagated(one, s.durables...)
}

// manyBillings: those on one database share the durable, and one on another does not start.
func (s *instances) manyBillings(services []*service) {
	s.t.Helper()
	shared := databaseOf("omi-billingsub")
	if s.billings != "" { // the first one moves there
		shared = s.billings
		if err := s.billing.interrupt(); err != nil {
			s.t.Fatal(err)
		}
		s.billing.command = append(s.billing.command, "--database-url", shared)
		if err := s.billing.start(); err != nil {
			s.t.Fatal(err)
		}
		s.awaitReady()
	}
	s.refused("billing-elsewhere", "", "sqlite:elsewhere.db", "omi-billingsub", s.billing)
	second := s.another("billing-2", "", shared, "omi-billingsub")
	s.awaitReady()
	for _, p := range []*daemon{s.billing, second} {
		s.checkAttributing(p, services)
	}
	if said := strings.Join(slices.Sorted(maps.Keys(s.consumers())), " "); said != "authsub-one authsub-three authsub-two billingsub" {
		s.t.Errorf("the durables are %s", said)
	}
}

// consumers are the durables on the stream of events.
func (s *instances) consumers() map[string]struct{} {
	s.t.Helper()
	stream, err := s.js.Stream(s.t.Context(), streams.Invalidations)
	if err != nil {
		s.t.Fatal(err)
	}
	names := map[string]struct{}{}
	list := stream.ListConsumers(s.t.Context())
	for info := range list.Info() {
		if info.Config.Durable != "" {
			names[info.Config.Durable] = struct{}{}
		}
	}
	if list.Err() != nil {
		s.t.Fatal(list.Err())
	}
	return names
}
