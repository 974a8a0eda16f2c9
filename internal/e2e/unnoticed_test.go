package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/testenv"
)

const (
	rotationsUnnoticed = 50
	strictDurable      = "authsub-strict"
	mostHeldBack       = 400 * time.Millisecond
)

// TestNobodyNotices: a service signs without a pause from eight goroutines while its key rotates 50
// times and it is killed with -9 again and again. Auth refuses nothing. Two Auth Providers are
// asked: the real process, and one that never asks the registry about a key that it does not know,
// so that a service which signs with its new key too early is refused.
//
// It uses the whole machine, so it runs alone, not in parallel with the other tests of this
// package.
func TestNobodyNotices(t *testing.T) {
	testenv.Long(t)
	useSources(t)
	for name, heldBack := range map[string]bool{"killed": false, "killed-and-held-back": true} {
		t.Run(name, func(t *testing.T) { nobodyNotices(t, heldBack) })
	}
}

func nobodyNotices(t *testing.T, heldBack bool) {
	t.Logf("-seed=%d", *seed)
	dice := rand.New(rand.NewPCG(*seed, 1))
	d := newDeployment(t, testenv.Database(t, testenv.SQLite))
	s := newDomain(t, d, "unnoticed")
	s.bind()
	p := s.process(t, d.strictAuth())
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var holding sync.WaitGroup
	if heldBack {
		holding.Go(func() { s.holdBack(ctx, rand.New(rand.NewPCG(*seed, 2))) })
	}
	killed, goal := 0, int64(1)
	for goal <= rotationsUnnoticed {
		goal += 1 + dice.Int64N(4)
		testenv.Eventually(t, patience, fmt.Sprintf("sequence %d", goal), func() error {
			if have := s.record().Sequence; have < goal {
				return fmt.Errorf("sequence %d", have)
			}
			return p.running()
		})
		<-time.After(rand.N(mostPause)) // any moment will do
		if err := errors.Join(p.kill9(), p.start()); err != nil {
			t.Fatal(err)
		}
		killed++
	}
	testenv.Eventually(t, patience, "the last one signs", func() error {
		if verified, _ := s.said(p, p.outFrom); verified == 0 {
			return errors.New("nothing verified yet")
		}
		return p.running()
	})
	cancel()
	holding.Wait()
	if err := p.interrupt(); err != nil {
		t.Error(err)
	}
	verified, refused := s.said(p, 0)
	t.Logf("%d signatures verified through %d rotations and %d kills", verified, s.record().Sequence-1, killed)
	for _, line := range refused[:min(5, len(refused))] {
		t.Error(line)
	}
	if len(refused) > 0 {
		t.Errorf("%d signatures were refused", len(refused))
	}
}

// process is the service as a process of its own.
func (s *domain) process(t *testing.T, strict string) *daemon {
	t.Helper()
	addr, err := s.auth.addr()
	if err != nil {
		t.Fatal(err)
	}
	return s.serviceProcess("service", &serviceConfig{
		Folder: s.folder, Signing: []string{"http://" + addr + "/v1/verify", strict + "/v1/verify"},
	})
}

// serviceProcess is a process of the service that has not started yet.
func (s *domain) serviceProcess(name string, cfg *serviceConfig) *daemon {
	s.t.Helper()
	cfg.Target, cfg.NATS, cfg.Origin, cfg.Trust = s.target.String(), s.js.Conn().ConnectedUrl(), s.trust.Origin(), s.registryKey()
	text, err := json.Marshal(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	link := filepath.Join(binaries, filepath.Base(program))
	if err := os.Symlink(program, link); err != nil && !errors.Is(err, os.ErrExist) {
		s.t.Fatal(err)
	}
	p := &daemon{
		name: name, folder: s.deployment.folder, env: []string{serviceEnv + "=" + string(text)}, command: []string{filepath.Base(program)},
	}
	s.t.Cleanup(p.stop)
	return p
}

// said is what a service process has said from a place on: how many signatures were accepted, and
// what was refused.
func (s *domain) said(p *daemon, from int64) (verified int64, refused []string) {
	s.t.Helper()
	content, err := os.ReadFile(p.out())
	if err != nil {
		s.t.Fatal(err)
	}
	last := int64(0) // of one run: each counts from 0
	lines := bufio.NewScanner(bytes.NewReader(content[from:]))
	for lines.Scan() {
		count, ok := strings.CutPrefix(lines.Text(), "verified ")
		if !ok {
			refused = append(refused, lines.Text())
			continue
		}
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		if n < last {
			verified += last
		}
		last = n
	}
	return verified + last, refused
}

// holdBack keeps the events from the two Auth Providers, again and again.
func (s *domain) holdBack(ctx context.Context, dice *rand.Rand) {
	for ctx.Err() == nil {
		durable := []string{authDurable, strictDurable}[dice.IntN(2)]
		s.pause(durable)
		<-time.After(time.Duration(dice.Int64N(int64(mostHeldBack))))
		s.resume(durable)
	}
}

// nobodyKnows is a registry that has never bound anything.
type nobodyKnows struct{}

func (nobodyKnows) ServiceRecord(context.Context, events.Target) (events.ServiceRecord, error) {
	return events.ServiceRecord{}, authsub.ErrUnknownService
}

// strictAuth starts an Auth Provider that knows what the events say, and nothing else. It returns
// its URL.
func (d *deployment) strictAuth() string {
	d.t.Helper()
	log := slog.New(slog.DiscardHandler)
	js, err := jetstream.New(testenv.Connect(d.t, d.js.Conn().ConnectedUrl()))
	if err != nil {
		d.t.Fatal(err)
	}
	auth, err := authsub.New(d.t.Context(), authsub.Config{
		JetStream: js, DatabaseURL: testenv.Database(d.t, testenv.SQLite), Instance: "strict", Trust: d.trust,
		Registry: nobodyKnows{}, Log: log,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- auth.Run(ctx) }()
	mux := http.NewServeMux()
	api.Mount(mux, auth.Routes())
	server := httptest.NewServer(mux)
	d.t.Cleanup(func() {
		server.Close()
		cancel()
		if err := errors.Join(<-ended, auth.Close()); err != nil {
			d.t.Error(err)
		}
	})
	testenv.Eventually(d.t, patience, "the strict Auth is ready", auth.Ready)
	return server.URL
}
