package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// These flags are for this package only, as in go test ./internal/e2e -run Chaos -chaos.duration=1h
// -timeout 0 -v. Other packages don't know them, so with ./... use OMI_CHAOS_DURATION.
var (
	chaosDuration = flag.Duration("chaos.duration", 0, "how long TestChaos breaks things (OMI_CHAOS_DURATION, or 10s)")
	chaosEngines  = flag.String("chaos.engines", "", "comma-separated databases that TestChaos needs: sqlite, postgres, cockroach (default: sqlite, and postgres where it is installed)")
	chaosSeed     = flag.Uint64("chaos.seed", rand.Uint64(), "of TestChaos's dice, as -seed is of TestKillNine's")
)

const (
	shortChaos = 10 * time.Second
	developers = 8
	// aroundChaos is how long the test takes without its faults, on a busy machine.
	aroundChaos = 4 * time.Minute
)

// TestChaos breaks everything that can break, a little at a time, while keys rotate: processes,
// databases, broker nodes, the ways between any two, disks and clocks. Then it repairs everything,
// waits, and counts: nothing was lost and nothing happened twice.
func TestChaos(t *testing.T) {
	t.Parallel()
	duration := chaosFor(t)
	if duration == 0 && *chaosEngines == "" {
		testenv.Long(t)
	}
	duration = cmp.Or(duration, shortChaos)
	useSources(t)
	engines, asked, err := enginesOf(*chaosEngines)
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "faults",
		"-o", filepath.Join(binaries, faultsFolder)+string(filepath.Separator),
		"omiappreg.org/keyrotation/cmd/omi-registry", "github.com/nats-io/nats-server/v2")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build what can be broken: %v\n%s", err, out)
	}
	const ports = portsOfCluster + nodesOfCockroach
	addrs := testenv.FreeAddrs(t, len(engines)*ports)
	for i, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() {
				if asked && t.Skipped() {
					t.Errorf("-chaos.engines asks for %s, which this machine does not have", engine)
				}
			})
			chaos(t, engine, addrs[i*ports:][:ports], uint64(i), duration)
		})
	}
}

// enginesOf returns the engines that a list names, and whether it names any. If it does, the test
// must not skip one of them.
func enginesOf(list string) (engines []string, asked bool, err error) {
	if list == "" {
		return []string{testenv.SQLite, testenv.Postgres}, false, nil
	}
	for engine := range strings.SplitSeq(list, ",") {
		if !slices.Contains(testenv.Engines(), engine) || slices.Contains(engines, engine) {
			return nil, false, fmt.Errorf("-chaos.engines=%s: want each of %s once at most, separated by commas", list, strings.Join(testenv.Engines(), ","))
		}
		engines = append(engines, engine)
	}
	return engines, true, nil
}

// chaosFor is how long things are to break; 0: nothing says it.
func chaosFor(t *testing.T) time.Duration {
	t.Helper()
	duration := *chaosDuration
	if text := os.Getenv("OMI_CHAOS_DURATION"); duration == 0 && text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("OMI_CHAOS_DURATION: %v", err)
		}
	}
	if deadline, ok := t.Deadline(); ok && duration > shortChaos && time.Until(deadline) < duration+aroundChaos {
		t.Fatalf("%v of chaos and what is around it don't fit into go test's -timeout: give it -timeout %v, or 0",
			duration, duration+2*aroundChaos)
	}
	return duration
}

func chaos(t *testing.T, engine string, addrs []string, stream uint64, duration time.Duration) {
	began := time.Now()
	t.Logf("-chaos.seed=%d -chaos.duration=%v", *chaosSeed, duration)
	s := newStand(t, engine, addrs)
	var answers atomic.Int64
	h := newHavoc(s, rand.New(rand.NewPCG(*chaosSeed, stream)), &answers)
	h.skipped(t)

	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	var running sync.WaitGroup
	all := s.newDevelopers(stream, &answers)
	failed := make([]error, len(all))
	for i, d := range all {
		running.Go(func() { failed[i] = d.run(ctx, working) })
	}
	breaking, mend := context.WithTimeout(ctx, duration)
	defer mend()
	err := h.run(breaking)
	stopWork()
	patient := time.AfterFunc(patience, giveUp)
	defer patient.Stop()
	running.Wait()
	if err := errors.Join(err, errors.Join(failed...)); err != nil {
		t.Error(err)
	}
	for _, p := range s.processes {
		if err := p.running(); err != nil {
			t.Error(err)
		}
	}
	answered := time.Since(began)
	sum := s.verify(all)
	t.Logf("%s, %v of faults, %v until all was answered, %v in all, -chaos.seed=%d\n%s%s", engine, duration,
		answered.Round(time.Second), time.Since(began).Round(time.Second), *chaosSeed, h.table(), sum)
}

// newDevelopers share one connection, which has ways of its own.
func (s *stand) newDevelopers(stream uint64, answers *atomic.Int64) []*developer {
	s.t.Helper()
	js, err := jetstream.New(testenv.Connect(s.t, s.services.broker))
	if err != nil {
		s.t.Fatal(err)
	}
	all := make([]*developer, developers)
	for i := range all {
		all[i] = &developer{
			name: fmt.Sprintf("developer-%d", i+1), patient: i%2 == 0,
			dice:   rand.New(rand.NewPCG(*chaosSeed, stream<<32|uint64(i+1))),
			master: s.master, app: s.app, js: js, trust: s.trust, answers: answers,
			committed: map[events.Nonce]events.Target{}, refused: map[string]events.Target{}, resent: map[string]bool{},
		}
	}
	return all
}

// verify waits until all is quiet, and counts.
func (s *stand) verify(all []*developer) *tally {
	s.t.Helper()
	var services []*service
	sum := newTally()
	for _, d := range all {
		services = append(services, d.services...)
		sum.add(d)
	}
	s.cluster.awaitUp()
	s.settle()
	s.cluster.whole(streams.Requests, streams.Invalidations, streams.Receipts)
	s.cluster.each(streams.Receipts, func(subject string, payload []byte) {
		receipt, err := s.trust.Receipt(subject, payload)
		if err != nil {
			s.t.Error(err)
			return
		}
		sum.receipt(&receipt)
	})
	s.cluster.each(streams.Invalidations, func(subject string, payload []byte) {
		event, err := s.trust.Invalidation(subject, payload)
		if err != nil {
			s.t.Error(err)
			return
		}
		sum.event(&event)
	})
	sum.check(s.t, services)
	s.checkRegistry(len(services), len(sum.committed))
	s.checkSubscribers(services, len(sum.committed))
	return sum
}

// checkSubscribers asks every Auth and every Billing, and looks at what they have applied.
func (s *stand) checkSubscribers(services []*service, changes int) {
	s.t.Helper()
	s.interrupt(s.registries) // Auth would ask them about what it does not know itself
	for _, p := range s.auths {
		s.checkVerifying(p.daemon, services)
	}
	for _, p := range s.billings {
		s.checkAttributing(p.daemon, services)
	}
	s.interrupt(s.auths)
	s.interrupt(s.billings)
	for _, p := range slices.Concat(s.auths, s.billings[:1]) { // Billing has one database
		s.checkSetAside(p.command[0], p.database)
		s.checkApplied(p.database, changes)
	}
}

// interrupt stops processes, which must end well after all this.
func (s *stand) interrupt(parties []*party) {
	s.t.Helper()
	for _, p := range parties {
		if err := p.interrupt(); err != nil {
			s.t.Error(err)
		}
	}
}
