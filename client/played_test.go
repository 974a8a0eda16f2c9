package client_test

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const playedWithin = time.Minute

// played is a service at a real broker whose registry the test plays: it answers what the test says and when it says it, by
// a clock of its own.
type played struct {
	*playedRegistry
	world    *verifierWorld
	target   events.Target
	folder   string // of the service's key store
	store    *client.Folder
	first    events.PublicKey // of the service
	requests *nats.Subscription

	mu   sync.Mutex
	told []client.Event
}

func play(t *testing.T) *played {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "keys")
	p := &played{
		folder: folder,
		world:  &verifierWorld{broker: testenv.NewBroker(t), registry: subtest.NewRegistry(t, events.GenerateSigningKey())},
		store:  open(t, folder), target: must(events.ParseTarget("org.example.shop.cms")),
	}
	var err error
	if p.world.js, err = jetstream.New(testenv.Connect(t, p.world.broker.URL())); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []jetstream.StreamConfig{streams.RequestsConfig(), streams.ReceiptsConfig()} {
		if _, err := p.world.js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	if p.requests, err = p.world.js.Conn().SubscribeSync(events.RotationSubject + p.target.String()); err != nil {
		t.Fatal(err)
	}
	key, err := p.store.Generate(t.Context(), client.Current)
	p.first = public(t, key, err)
	p.playedRegistry = p.world.answering(t)
	p.record(1, p.first, time.Now().Unix(), time.Now().Unix(), false)
	return p
}

// open starts the service's client.
func (p *played) open(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	cfg.Target, cfg.Conn, cfg.Trust = p.target, p.world.js.Conn(), p.world.registry.Trust
	if cfg.Store == nil {
		cfg.Store = p.store
	}
	also := cfg.Notify
	cfg.Notify = func(e client.Event) {
		p.mu.Lock()
		p.told = append(p.told, e)
		p.mu.Unlock()
		if also != nil {
			also(e)
		}
	}
	c, err := client.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// record is what the registry answers from now on, at a time by its clock.
func (p *played) record(sequence int64, current events.PublicKey, since, now int64, applied bool, grace ...events.GraceKey) {
	p.set(events.ServiceRecord{
		Origin: subtest.Origin, AppID: p.target.App, ServiceID: p.target.Service, Status: events.Active, Sequence: sequence, BoundAt: 1,
		Current: events.CurrentKey{PublicKey: current, Since: since}, Grace: grace,
		Propagation: map[string]bool{streams.AuthDurable: applied}, Timestamp: now,
	})
}

// sent is a request.
type sent struct {
	nonce events.Nonce
	key   events.PublicKey
	at    int64 // its date
	hash  string

	origin     string
	endEarlier bool
}

// request waits for the service's next request.
func (p *played) request(t *testing.T) sent {
	t.Helper()
	msg, err := p.requests.NextMsg(playedWithin)
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Data struct {
			Key   string `json:"new_public_key"`
			Nonce string `json:"nonce"`
			At    int64  `json:"rotation_timestamp"`

			Origin     string `json:"origin"`
			EndEarlier bool   `json:"end_earlier"`
		} `json:"data"`
	}
	if err := json.Unmarshal(msg.Data, &m); err != nil {
		t.Fatal(err)
	}
	return sent{
		must(events.ParseNonce(m.Data.Nonce)), must(events.ParsePublicKey(m.Data.Key)), m.Data.At, events.RequestHash(msg.Data),
		m.Data.Origin, m.Data.EndEarlier,
	}
}

// commit answers a request that was committed at a time by the registry's clock.
func (p *played) commit(t *testing.T, r sent, sequence, at, grace int64) {
	t.Helper()
	receipt := events.Receipt{
		Origin: subtest.Origin, Target: p.target, Event: events.RequestCommitted, RequestNonce: r.nonce, Timestamp: at,
		Nonce: events.NewNonce(), Sequence: sequence, PublicKey: r.key, GracePeriodExpiry: at + grace, EventNonce: events.NewNonce(),
	}
	p.answer(t, &receipt)
}

// refuse answers a request with a refusal at a time by the registry's clock.
func (p *played) refuse(t *testing.T, r sent, why events.Reason, at int64) {
	t.Helper()
	receipt := events.Receipt{
		Origin: subtest.Origin, Target: p.target, Event: events.RequestRejected, RequestNonce: r.nonce, Timestamp: at,
		Nonce: events.NewNonce(), Reason: why, Detail: "No.", RequestHash: r.hash,
	}
	p.answer(t, &receipt)
}

// answer publishes a receipt as a registry does.
func (p *played) answer(t *testing.T, r *events.Receipt) {
	t.Helper()
	signed := r.Sign(p.world.registry.Key)
	_, err := p.world.js.Publish(t.Context(), r.Subject(), signed)
	if err := errors.Join(err, p.world.js.Conn().Publish(events.AnswerSubject+p.target.String(), signed)); err != nil {
		t.Fatal(err)
	}
}

// of returns the events of a kind.
func (p *played) of(kind client.EventKind) (found []client.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.told {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// await waits until it was told of this many events of a kind.
func (p *played) await(t *testing.T, kind client.EventKind, count int) {
	t.Helper()
	testenv.Eventually(t, playedWithin, string(kind), func() error {
		if have := len(p.of(kind)); have < count {
			return fmt.Errorf("%d events %s", have, kind)
		}
		return nil
	})
}

// asks waits until the registry was asked this many times more.
func (p *played) asks(t *testing.T, more int) {
	t.Helper()
	until := p.count() + more
	testenv.Eventually(t, playedWithin, "the registry is asked", func() error {
		if have := p.count(); have < until {
			return fmt.Errorf("%d of %d times", have, until)
		}
		return nil
	})
}

func signsWith(t *testing.T, c *client.Client, want events.PublicKey) {
	t.Helper()
	if _, have := c.Signer().Key(); have != want {
		t.Errorf("it signs with %s, want %s", have, want)
	}
}

// returns waits for what a goroutine has to say.
func returns[T any](t *testing.T, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(playedWithin):
		t.Fatal(what + " goes on")
	}
	return v
}

// rotating asks for a rotation in the background.
func rotating(ctx context.Context, c *client.Client) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := c.Rotate(ctx)
		done <- err
	}()
	return done
}

// stubborn is a key store that fails, or waits, when a test says so.
type stubborn struct {
	*client.Folder
	failing atomic.Bool
	held    chan struct{} // not nil: Generate and Save say here that they wait
	goOn    chan struct{} // and here that they don't have to
}

var errStubborn = errors.New("the disk is away")

func (s *stubborn) wait() error {
	if s.held != nil {
		s.held <- struct{}{}
		<-s.goOn
	}
	if s.failing.Load() {
		return errStubborn
	}
	return nil
}

func (s *stubborn) Signer(ctx context.Context, slot client.Slot) (crypto.Signer, error) {
	if s.failing.Load() {
		return nil, errStubborn
	}
	return s.Folder.Signer(ctx, slot)
}

func (s *stubborn) Generate(ctx context.Context, slot client.Slot) (crypto.Signer, error) {
	if err := s.wait(); err != nil {
		return nil, err
	}
	return s.Folder.Generate(ctx, slot)
}

func (s *stubborn) Promote(ctx context.Context) error {
	if s.failing.Load() {
		return errStubborn
	}
	return s.Folder.Promote(ctx)
}

func (s *stubborn) Save(ctx context.Context, text []byte) error {
	if err := s.wait(); err != nil {
		return err
	}
	return s.Folder.Save(ctx, text)
}
