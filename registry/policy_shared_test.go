package registry

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

// policed is a registry with a policy, that runs until the test's end. ended has its error when it has ended.
type policed struct {
	*Registry
	ended chan error
}

func (w *world) start(policy Policy, change bool) policed {
	w.t.Helper()
	policy.Origin = testOrigin
	r, err := New(Config{
		Policy: policy, ChangePolicy: change, Key: testKey, Store: w.store, Conn: testenv.Connect(w.t, w.broker.URL()), Log: testLog(w.t),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p := policed{r, make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.ended <- r.Run(ctx)
	}()
	w.t.Cleanup(func() {
		stop()
		<-done
	})
	return p
}

// serves waits until a registry serves, and goes by this grace period.
func (p policed) serves(t *testing.T, grace time.Duration) {
	t.Helper()
	testenv.Eventually(t, patience, "the registry serves with this policy", func() error {
		select {
		case err := <-p.ended:
			t.Fatalf("it has ended: %v", err)
		default:
		}
		if err := p.Ready(); err != nil {
			return err
		}
		if has := p.Lookup.Info().GracePeriod; has != int64(grace/time.Second) {
			return errors.New("it announces another grace period")
		}
		return nil
	})
}

// TestOtherPolicy: the first registry on a database says what all go by. Another one with other settings does not start, and says
// which they are. With ChangePolicy it does, and those that run go by its settings from then on.
func TestOtherPolicy(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		first := w.start(Policy{}, false)
		first.serves(t, 300*time.Second)
		second := w.start(Policy{GracePeriod: 5 * time.Minute, RotationsPerMinute: 10}, false)
		second.serves(t, 300*time.Second)

		others := Policy{GracePeriod: time.Minute, MaxClockSkew: time.Hour, RequireProof: events.ProofsAll, RotationsPerMinute: -7}
		err := <-w.start(others, false).ended
		if !errors.Is(err, ErrOtherPolicy) {
			t.Fatalf("with another policy: %v", err)
		}
		for _, want := range []string{
			"--grace-period is recorded as 300s and is 60s here", "--max-clock-skew is recorded as 300s and is 3600s here",
			"--require-proof is recorded as own and is all here", "--rate-limit is recorded as 10 and is -1 here", "--change-policy",
		} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: it does not say %q", err, want)
			}
		}
		if strings.Contains(err.Error(), "--origin is") {
			t.Errorf("%v: the origin is the same", err)
		}

		others.RequireProof = events.ProofsNone // which the requests below have none of
		w.start(others, true).serves(t, time.Minute)
		first.serves(t, time.Minute)
		second.serves(t, time.Minute)
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "shop")
		bound := d.bind()
		w.publish(bound)
		w.answer(bound)
		for range 4 { // whichever of the three takes it
			r := d.rotate()
			w.publish(r)
			receipt := w.answer(r)
			if grace := receipt.GracePeriodExpiry - receipt.Timestamp; grace != 60 {
				t.Errorf("a rotation has %d seconds of grace", grace)
			}
		}
		if err := <-w.start(Policy{}, false).ended; !errors.Is(err, ErrOtherPolicy) {
			t.Errorf("with the policy of before: %v", err)
		}
		w.start(others, false).serves(t, time.Minute)
	})
}

// TestPoliciesTogether: of registries that start together with different settings on a new database, those of one serve.
func TestPoliciesTogether(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		const each = 3
		type result struct {
			grace time.Duration
			err   error
		}
		results := make(chan result, 2*each)
		for i := range 2 * each {
			grace := time.Duration(1+i%2) * time.Minute
			go func() {
				r := &Registry{cfg: Config{Policy: Policy{Origin: testOrigin, GracePeriod: grace, MaxClockSkew: time.Minute}, Store: store, Log: testLog(t)}}
				results <- result{grace, r.agreeOnPolicy(t.Context())}
			}()
		}
		agreed := map[time.Duration]int{}
		for range 2 * each {
			one := <-results
			if one.err == nil {
				agreed[one.grace]++
			} else if !errors.Is(one.err, ErrOtherPolicy) {
				t.Error(one.err)
			}
		}
		if len(agreed) != 1 || agreed[time.Minute]+agreed[2*time.Minute] != each {
			t.Errorf("these agreed: %v", agreed)
		}
	})
}

// TestUnreadablePolicy: what somebody wrote into the record by hand stops a start, until a registry changes it.
func TestUnreadablePolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.start(Policy{}, false).serves(t, 300*time.Second)
	if _, err := w.store.db.Exec(t.Context(), "UPDATE policy SET value = 'long' WHERE name = 'grace_period_seconds'"); err != nil {
		t.Fatal(err)
	}
	if err := <-w.start(Policy{}, false).ended; !errors.Is(err, ErrOtherPolicy) || !strings.Contains(err.Error(), "grace_period_seconds") {
		t.Errorf("it says %v", err)
	}
	w.start(Policy{GracePeriod: time.Minute}, true).serves(t, time.Minute)
}
