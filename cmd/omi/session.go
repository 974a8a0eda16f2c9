package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/lookup"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/request"
)

// connection is the flags of every command that talks to a deployment.
type connection struct {
	process.NATS `embed:""`
	Trust        []string      `env:"OMI_TRUST" placeholder:"ed25519:…" help:"The registry's public key, repeatable. Without it, the registry at the broker is asked and believed."`
	Timeout      time.Duration `default:"10s" help:"How long to wait for an answer (${default})."`
	JSON         bool          `help:"Print JSON."`
}

// targetFlags name a service.
type targetFlags struct {
	AppID     string `name:"app-id" env:"OMI_APP_ID" required:"" placeholder:"ID" help:"The app, for example org.example.dev."`
	ServiceID string `name:"service-id" env:"OMI_SERVICE_ID" required:"" placeholder:"ID" help:"The service, for example cms."`
}

func (f targetFlags) target() (events.Target, error) {
	app, err := events.ParseAppID(f.AppID)
	if err != nil {
		return events.Target{}, process.Usagef("--app-id: %w", err)
	}
	service, err := events.ParseServiceID(f.ServiceID)
	if err != nil {
		return events.Target{}, process.Usagef("--service-id: %w", err)
	}
	return events.Target{App: app, Service: service}, nil
}

// session is a connection to one deployment, whose registry is known and trusted.
type session struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	trust events.Trust
}

// withSession runs a command that ends by itself, by its timeout or by a signal. timeout 0 means none.
func (c connection) withSession(timeout time.Duration, do func(context.Context, *session) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	for _, key := range c.Trust { // before anybody is waited for
		if _, err := events.ParsePublicKey(key); err != nil {
			return process.Usagef("--trust: %w", err)
		}
	}
	opening, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	log := process.NewLog(os.Stderr, slog.LevelError)
	nc, err := c.ConnectNow(opening, "omi", log)
	if err != nil {
		return err
	}
	defer process.Close(nc, log)
	s, err := openSession(opening, nc, c.Trust)
	if err != nil {
		return err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return do(ctx, s)
}

func openSession(ctx context.Context, nc *nats.Conn, trusted []string) (*session, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	s := &session{nc: nc, js: js}
	info, err := lookup.RegistryInfo(ctx, nc)
	if err != nil {
		return nil, coded(err)
	}
	if len(trusted) > 0 {
		s.trust, err = process.Trust{Origin: info.Origin, Keys: trusted}.Load()
		return s, err
	}
	if s.trust, err = events.NewTrust(info.Origin, info.PublicKeys...); err != nil {
		return nil, fmt.Errorf("the registry's own description: %w", err)
	}
	return s, nil
}

func (s *session) sender() request.Sender { return request.Sender{JetStream: s.js, Trust: s.trust} }

func (s *session) registry() lookup.Registry { return lookup.Registry{Conn: s.nc, Trust: s.trust} }

// record asks the registry for a service's record, and believes only its signature.
func (s *session) record(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	record, err := s.registry().ServiceRecord(ctx, t)
	return record, coded(err)
}

// history asks the registry for a service's history, and believes only its signature.
func (s *session) history(ctx context.Context, t events.Target) (events.ServiceHistory, error) {
	history, err := s.registry().ServiceHistory(ctx, t)
	return history, coded(err)
}

// coded gives an error of a lookup its exit code: the other side's no, an answer that can't be believed, or nobody there.
func coded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, lookup.ErrUnknownService), errors.As(err, new(*api.Problem)), errors.As(err, new(*events.Refusal)):
		return process.Refused(err)
	default:
		return process.Unreachable(err)
	}
}
