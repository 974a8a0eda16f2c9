package e2e_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

var seed = flag.Uint64("seed", rand.Uint64(), "of TestKillNine's dice; what the scheduler makes of them is another matter")

const (
	customers    = 8
	kills        = 15                    // five of each process
	mostProgress = 60                    // requests that are answered between two kills, at most
	mostPause    = 20 * time.Millisecond // and then as much, so that a kill falls into any step
	mostStart    = 150 * time.Millisecond
)

// TestKillNine kills the registry, Auth and Billing in turn while keys rotate, each at some moment
// of its work or of its start, and starts it again. When all is quiet, nothing was lost and nothing
// happened twice.
func TestKillNine(t *testing.T) {
	t.Parallel()
	useSources(t)
	engines := testenv.Whole([]string{testenv.SQLite, testenv.Postgres}, []string{testenv.SQLite})
	for _, engine := range engines { // the registry's
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			killNine(t, testenv.Database(t, engine))
		})
	}
}

func killNine(t *testing.T, url string) {
	t.Logf("-seed=%d", *seed)
	d := newDeployment(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	inbox := newReceipts()
	if err := inbox.follow(ctx, d.js, d.trust); err != nil {
		t.Fatal(err)
	}

	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	var running sync.WaitGroup
	all := make([]*customer, customers)
	failed := make([]error, customers)
	for i := range all {
		all[i] = &customer{
			name: fmt.Sprintf("customer-%d", i+1), patient: i%2 == 0, dice: rand.New(rand.NewPCG(*seed, uint64(i))),
			master: d.master, app: d.app, js: d.js, receipts: inbox, acknowledged: map[events.Nonce]struct{}{},
		}
		running.Go(func() { failed[i] = all[i].run(working) })
	}
	began := time.Now()
	twice := killInTurn(t, d, inbox)
	stopWork()
	running.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	resent, acknowledged := 0, map[events.Nonce]struct{}{}
	var services []*service
	for _, c := range all {
		services, resent = append(services, c.services...), resent+c.resent
		for nonce := range c.acknowledged {
			acknowledged[nonce] = struct{}{}
		}
	}
	t.Logf("%d changes of %d services in %v, with %d kills, %d of them in the start after one; %d requests sent again",
		len(acknowledged), len(services), time.Since(began).Round(time.Millisecond), kills+twice, twice, resent)

	if err := inbox.check(acknowledged); err != nil {
		t.Error(err)
	}
	d.settle()
	d.checkStream(services)
	d.checkRegistry(len(services), len(acknowledged))
	d.checkAuth(services)
	d.checkBilling(services)
	d.stop()
	d.checkApplied(databaseOf("omi-authsub"), len(acknowledged))
	d.checkApplied(databaseOf("omi-billingsub"), len(acknowledged))
	d.checkNoAlarm()
}

// killInTurn kills one process after the other, and returns how many it killed again while they
// started.
func killInTurn(t *testing.T, d *deployment, inbox *receipts) (twice int) {
	dice := rand.New(rand.NewPCG(*seed, customers))
	pause := func(most time.Duration) { <-time.After(rand.N(most)) } // any moment will do
	restart := func(p *daemon) {
		if err := errors.Join(p.kill9(), p.start()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range kills {
		victim := d.processes[i%len(d.processes)]
		goal := inbox.count() + 1 + dice.IntN(mostProgress)
		testenv.Eventually(t, patience, "requests are answered between two kills", func() error {
			if have := inbox.count(); have < goal {
				return fmt.Errorf("%d of %d", have, goal)
			}
			return victim.running()
		})
		pause(mostPause)
		restart(victim)
		if dice.IntN(3) == 0 {
			twice++
			pause(mostStart)
			restart(victim)
		}
	}
	return twice
}
