// Package coreservice is what an Auth Provider and a Billing Service have in common: a database of
// its own, the events that are applied to it, and answers over NATS and HTTP. Packages authsub and
// billingsub add the answers themselves, and package cli is the command line of both programs.
package coreservice

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
)

// Config says what a core service is. All fields are required.
type Config struct {
	DatabaseURL string
	Owner       sqldb.Owner       // of the database
	Subscriber  subscriber.Config // without its Store
	API         api.Service       // how it introduces itself over NATS
	Endpoints   []api.Endpoint
}

// Service is a core service. Its methods may be called concurrently, except for Close.
type Service struct {
	*subscriber.Subscriber
	Store *storage.Store

	cfg Config
}

// Open opens the database. It waits for a database server that is not up yet, until ctx ends.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	store, err := storage.Open(ctx, cfg.DatabaseURL, cfg.Owner, cfg.Subscriber.Log)
	if err != nil {
		return nil, err
	}
	cfg.Subscriber.Store = store
	s, err := subscriber.New(cfg.Subscriber)
	if err != nil {
		_ = store.Close() // the first error says more
		return nil, err
	}
	return &Service{s, store, cfg}, nil
}

// Registry asks the registry over the connection of the events, and believes it as they are
// believed.
func (s *Service) Registry() *registryclient.Current {
	return &registryclient.Current{Conn: s.cfg.Subscriber.JetStream.Conn(), Trust: s.Trust}
}

// Run applies events, answers over NATS and runs what else is given until ctx ends, and then
// returns nil. It waits for what may come back, and answers nothing before the durable is known to
// be free: until then, the database may lack events that another process got.
func (s *Service) Run(ctx context.Context, concurrently ...func(context.Context)) error {
	if err := s.Acquire(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c := &s.cfg.Subscriber
	answering, err := api.Register(ctx, c.JetStream.Conn(), c.Log, s.cfg.API, s.cfg.Endpoints...)
	if err != nil {
		return fmt.Errorf("answer over NATS: %w", err)
	}
	defer func() { _ = answering.Stop() }() // fails only if the connection is gone
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, run := range concurrently {
		running.Go(func() { run(ctx) })
	}
	err = s.Subscriber.Run(ctx)
	stop()
	running.Wait()
	return err
}

// Routes returns the handlers of the answers over HTTP, by their patterns for [http.ServeMux].
func (s *Service) Routes() map[string]http.Handler {
	return api.Routes(s.cfg.Subscriber.Log, s.cfg.Endpoints...)
}

// Close closes the database. Call it after Run has returned.
func (s *Service) Close() error { return s.Store.Close() }

// HostInstance turns the name of this host into the name of an instance: in lower case, with
// hyphens for all characters that an instance's name can't have.
func HostInstance() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("ask for the name of this host, which names the instance: %w", err)
	}
	name := strings.Map(func(r rune) rune {
		if instanceRune(r) {
			return r
		}
		return '-'
	}, strings.ToLower(host))
	name = strings.Trim(name[:min(len(name), instanceMost)], "-")
	return cmp.Or(name, "host"), nil
}

// instanceMost is the longest name of an instance, in bytes.
const instanceMost = 128

// CheckInstance returns an error for a text that can't be the name of an instance.
func CheckInstance(name string) error {
	if name == "" || len(name) > instanceMost || strings.ContainsFunc(name, func(r rune) bool { return !instanceRune(r) }) {
		return fmt.Errorf("the name of an instance has letters, digits, hyphens and underscores, %d at most, not %.150q", instanceMost, name)
	}
	return nil
}

func instanceRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}
