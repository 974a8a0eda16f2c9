package e2e_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/access"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

var (
	siegeQuiet  = flag.Duration("siege.quiet", 300*time.Millisecond, "how long TestSiege measures before and after the attacks")
	siegeAttack = flag.Duration("siege.attack", 200*time.Millisecond, "how long each attack of TestSiege goes on")
	siegeRate   = flag.Int("siege.rate", 60, "honest rotations a second of TestSiege")
	siegeFlood  = flag.Int("siege.flood", 0, "an attacker's messages a second in TestSiege; 0: as fast as the broker takes them")
)

const (
	siegeStore    = "64MB"
	siegeServices = 20
	siegeApp      = "org.example.shop"
	strangersApp  = "org.example.strange"
	// of a receiver, which may have so many
	strangeConsumers = 8

	siegeOrigin = "omiappreg.org"
	siegeWithin = 30 * time.Second // for a rotation to be answered, whatever goes on
)

// TestSiege is the deployment of deploy/nats with a small store. One account after the other, each
// that a stranger may hold, does the worst that it may, while honest services rotate. None of them
// loses anything, and afterwards all is as before, without an operator. With -siege.quiet=10s
// -siege.attack=20s -siege.flood=2000 -v it prints what they notice.
func TestSiege(t *testing.T) {
	t.Parallel()
	useSources(t)
	s := newSiege(t)
	s.phase("quiet", *siegeQuiet, nil)
	for _, a := range s.attacks() {
		s.phase(a.name, *siegeAttack, a.attack)
		s.recovered()
	}
	s.phase("quiet", *siegeQuiet, nil)
	t.Logf("%d rotations a second of %d services\n%s", *siegeRate, siegeServices, s.table())
	s.check()
}

// siege is the deployment, and what was measured.
type siege struct {
	*secured
	registry  *daemon
	operator  jetstream.JetStream
	trust     events.Trust
	honest    []*besieged
	phases    []siegePhase
	processes []*daemon
}

type siegePhase struct {
	name string
	took []time.Duration // sorted
	sent int             // by the attacker
	most uint64          // requests in the stream
	then time.Duration   // until nothing was left of it
}

// besieged is an honest service with its account.
type besieged struct {
	sender  registryclient.Sender
	target  events.Target
	key     events.SigningKey
	changes int64
}

func newSiege(t *testing.T) *siege {
	s := &siege{secured: &secured{t: t, folder: t.TempDir()}}
	s.env = []string{"HOME=" + s.folder, "OMI_HTTP_ADDR=127.0.0.1:0", instanceEnv}
	s.broker = testenv.NewSmallSecuredBroker(t, siegeStore, func(nkey func(string) string) string {
		var accounts strings.Builder
		for i := range siegeServices {
			name := fmt.Sprintf("honest-%d", i)
			accounts.WriteString(access.Service(siegeTarget(t, siegeApp, name), nkey(name)).String())
		}
		own := siegeTarget(t, strangersApp, "own")
		accounts.WriteString(access.Developer(siegeTarget(t, siegeApp, "x").App, nkey("developer")).String())
		accounts.WriteString(access.Service(own, nkey("stranger")).String())
		accounts.WriteString(access.Developer(own.App, nkey("strange-developer")).String())
		accounts.WriteString(access.Receiver("strange", nkey("strange-receiver"), strangeConsumers).String())
		return accounts.String()
	})
	s.env = append(s.env, "OMI_NATS_URL="+s.broker.URL(), "OMI_NATS_CA="+s.broker.CA())
	registryKey := lastLine(s.run(0, "", "omi-registry", "keygen", "--out", "registry.pem"))
	s.env = append(s.env, "OMI_TRUST="+registryKey)
	for _, app := range []string{siegeApp, strangersApp} {
		master := lastLine(s.run(0, "", "omi", "keygen", "--out", app+".pem"))
		s.run(0, "", "omi-registry", "app", "add", "--app-id", app, "--master-key", master)
	}
	s.registry = s.start("REGISTRY", "omi-registry", "--signing-key", "registry.pem", "--rate-limit=-1")
	s.processes = []*daemon{s.registry, s.start("AUTHSUB", "omi-authsub"), s.start("BILLINGSUB", "omi-billingsub")}
	for _, p := range s.processes {
		testenv.Eventually(t, patience, p.name, p.ready)
	}
	s.operator = s.jetStream("OPERATOR")
	key, err := events.ParsePublicKey(registryKey)
	s.must(err)
	s.trust, err = events.NewTrust(siegeOrigin, key)
	s.must(err)
	s.bind()
	return s
}

func siegeTarget(t *testing.T, app, service string) events.Target {
	t.Helper()
	parsed, err := events.ParseTarget(app + "." + service)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func (s *siege) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// jetStream connects as a user. Tests of internal/access try what that user may not do.
func (s *siege) jetStream(user string) jetstream.JetStream {
	s.t.Helper()
	js, err := jetstream.New(s.broker.Connect(user, func(error) {}), jetstream.WithPublishAsyncMaxPending(1024))
	s.must(err)
	return js
}

// bind binds the honest services, and the stranger's own.
func (s *siege) bind() {
	s.t.Helper()
	for _, app := range []string{siegeApp, strangersApp} {
		master, err := keyfile.Read(s.folder + "/" + app + ".pem")
		s.must(err)
		developer := map[string]string{siegeApp: "developer", strangersApp: "strange-developer"}[app]
		sender := registryclient.Sender{JetStream: s.jetStream(developer), Trust: s.trust}
		services := []string{"own"}
		if app == siegeApp {
			services = nil
			for i := range siegeServices {
				services = append(services, fmt.Sprintf("honest-%d", i))
			}
		}
		for _, name := range services {
			one := &besieged{sender: sender, target: siegeTarget(s.t, app, name)}
			s.must(one.change(s.t.Context(), events.Binding, master))
			if app == siegeApp {
				one.sender.JetStream = s.jetStream(name)
				s.honest = append(s.honest, one)
			}
		}
	}
}

// change asks for a change, and waits until it is committed.
func (b *besieged) change(ctx context.Context, kind events.RequestKind, by events.SigningKey) error {
	ctx, cancel := context.WithTimeout(ctx, siegeWithin)
	defer cancel()
	newKey := events.GenerateSigningKey()
	draft := events.Draft{Kind: kind, Target: b.target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce(), Origin: siegeOrigin}
	m, err := registryclient.Sign(draft, by.Private(), newKey.Private())
	if err != nil {
		return err
	}
	receipt, err := b.sender.Send(ctx, b.target, m, nil)
	if err != nil {
		return err
	}
	if receipt.Event != events.RequestCommitted || receipt.Sequence != b.changes+1 {
		return fmt.Errorf("%s: %+v", b.target, receipt)
	}
	b.key, b.changes = newKey, receipt.Sequence
	return nil
}

// phase lets the honest services rotate for a time, while an attack goes on.
func (s *siege) phase(name string, long time.Duration, attack func(context.Context) int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), long)
	defer cancel()
	p := siegePhase{name: name}
	var running sync.WaitGroup
	if attack != nil {
		running.Go(func() { p.sent = attack(ctx) })
		running.Go(func() { p.most = s.watch(ctx) })
	}
	var mu sync.Mutex
	each := time.Duration(len(s.honest)) * time.Second / time.Duration(*siegeRate)
	for i, one := range s.honest {
		running.Go(func() {
			tick := time.NewTimer(time.Duration(i) * each / time.Duration(len(s.honest)))
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					tick.Reset(each)
				}
				began := time.Now()
				if err := one.change(s.t.Context(), events.Rotation, one.key); err != nil {
					s.t.Errorf("%s: %v", name, err)
					return
				}
				mu.Lock()
				p.took = append(p.took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	running.Wait()
	slices.Sort(p.took)
	s.phases = append(s.phases, p)
	if len(p.took) == 0 {
		s.t.Errorf("%s: nothing was rotated", name)
	}
}

// watch returns how many requests the stream had at most.
func (s *siege) watch(ctx context.Context) (most uint64) {
	for ctx.Err() == nil {
		if stream, err := s.operator.Stream(ctx, streams.Requests); err == nil {
			most = max(most, stream.CachedInfo().State.Msgs)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return most
}

// recovered waits until nothing is left of an attack, and the registry is healthy.
func (s *siege) recovered() {
	s.t.Helper()
	began := time.Now()
	testenv.Eventually(s.t, patience, "nothing is left of the attack", func() error {
		stream, err := s.operator.Stream(s.t.Context(), streams.Requests)
		if err == nil && stream.CachedInfo().State.Msgs > 0 {
			err = fmt.Errorf("%d requests are left", stream.CachedInfo().State.Msgs)
		}
		return errors.Join(err, s.registry.ready())
	})
	s.phases[len(s.phases)-1].then = time.Since(began)
}

// check asserts that every change is known to all, and that nothing else has changed.
func (s *siege) check() {
	s.t.Helper()
	changes := int64(1) // the stranger's binding
	for _, one := range s.honest {
		changes += one.changes
	}
	for _, p := range s.processes {
		s.must(p.ready())
	}
	for _, name := range []string{"authsub-one", "billingsub"} {
		testenv.Eventually(s.t, patience, name+" has all events", func() error {
			durable, err := s.operator.Consumer(s.t.Context(), streams.Invalidations, name)
			if err != nil {
				return err
			}
			if left := durable.CachedInfo().NumPending + uint64(durable.CachedInfo().NumAckPending); left > 0 {
				return fmt.Errorf("it lacks %d", left)
			}
			return nil
		})
	}
	s.must(s.registry.interrupt())
	said := s.run(0, "REGISTRY", "omi-registry", "check", "--stream", "--trust", s.env[len(s.env)-1][len("OMI_TRUST="):])
	s.expect(said, fmt.Sprintf(`\b%d changes`, changes))
}

func (s *siege) table() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "phase\trotations\tp50 ms\tp99 ms\tmax ms\tattacker's messages\trequests at most\tgone after\t")
	for _, p := range s.phases {
		at := func(q float64) float64 {
			if len(p.took) == 0 {
				return 0
			}
			return float64(p.took[int(q*float64(len(p.took)-1))].Microseconds()) / 1000
		}
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.1f\t%.1f\t%d\t%d\t%v\t\n", p.name, len(p.took), at(0.5), at(0.99), at(1), p.sent, p.most,
			p.then.Round(time.Millisecond))
	}
	_ = w.Flush()
	return out.String()
}

// flood publishes as a user until ctx ends, and returns how much it was.
func (s *siege) flood(ctx context.Context, user string, message func(i int) *nats.Msg) int {
	nc := s.broker.Connect(user, func(error) {})
	defer nc.Close()
	began := time.Now()
	for i := 0; ; i++ {
		if *siegeFlood > 0 {
			if ahead := time.Duration(i)*time.Second/time.Duration(*siegeFlood) - time.Since(began); ahead > 0 {
				<-time.After(ahead)
			}
		}
		if ctx.Err() != nil {
			return i
		}
		if err := nc.PublishMsg(message(i)); err != nil {
			s.t.Errorf("%s: %v", user, err)
			return i
		}
		if i%256 == 0 {
			_ = nc.FlushWithContext(ctx) // so that the broker, and not this process, has it
		}
	}
}
