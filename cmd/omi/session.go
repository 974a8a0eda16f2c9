package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// connection has the flags of every command that talks to a deployment.
type connection struct {
	process.NATS `embed:""`
	Trust        []string      `env:"OMI_TRUST" placeholder:"ed25519:…" help:"The registry's public key, repeatable; without it, the registry is believed."`
	TrustFile    string        `name:"trust-file" env:"OMI_TRUST_FILE" placeholder:"FILE" help:"A file with public keys of the registry, one on each line."`
	Origin       string        `env:"OMI_ORIGIN" placeholder:"DOMAIN" help:"The registry's domain name; without it, the registry is believed."`
	Timeout      time.Duration `default:"10s" help:"How long to wait for an answer (${default})."`
	JSON         bool          `help:"Print JSON (one object per line when streaming)."`
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
	info  events.RegistryInfo // what the registry says of itself
}

// keptJWKS is how long a JWK Set may be kept.
func (s *session) keptJWKS() time.Duration { return time.Duration(s.info.JWKSMaxAge) * time.Second }

// trusts reports whether the flags name the registry's keys.
func (c connection) trusts() bool { return len(c.Trust) > 0 || c.TrustFile != "" }

func (c connection) trusted() process.Trust {
	return process.Trust{Origin: c.Origin, Keys: c.Trust, File: c.TrustFile}
}

// check says what is wrong with the flags, before the command waits for the broker.
func (c connection) check() error {
	if trust := c.trusted(); c.trusts() {
		trust.Origin = cmp.Or(c.Origin, "any.example") // the registry's own is known later
		if _, err := trust.Load(); err != nil {
			return err
		}
	}
	if c.Origin != "" && events.CheckOrigin(c.Origin) != nil {
		return process.Usagef("--origin %q: %w", c.Origin, events.ErrOrigin)
	}
	if c.Timeout <= 0 {
		return process.Usagef("--timeout is how long to wait for an answer, such as 10s, and not %s", c.Timeout)
	}
	return c.Check()
}

// withSession runs a command that ends by itself, by its timeout or by a signal. A timeout of 0
// means none.
func (c connection) withSession(timeout time.Duration, do func(context.Context, *session) error) error {
	return c.withBroker(func(ctx context.Context, s *session) error {
		opening, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		s, err := openSession(opening, s.nc, c.trusted())
		if err != nil {
			return err
		}
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return do(ctx, s)
	})
}

// withBroker is for questions that need no registry, and trusts none.
func (c connection) withBroker(do func(context.Context, *session) error) error {
	if err := c.check(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), process.StopSignals()...)
	defer stop()
	connecting, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	tighten(c.NKey, c.Creds)
	log := process.NewLog(os.Stderr, slog.LevelError)
	nc, err := c.ConnectNow(connecting, "omi", log)
	if err != nil {
		return err
	}
	defer process.Close(nc, log)
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	err = do(ctx, &session{nc: nc, js: js})
	if last := nc.LastError(); process.WaitedInVain(err) && denied(last) {
		return notAllowed(err, last)
	}
	return process.Plain(err)
}

// notAllowed says why an account that may not ask got no answer: waiting longer would not change
// that.
func notAllowed(err, last error) error {
	// It says what to do about an answer that may still come.
	if waiting := (process.Worded{}); errors.As(err, &waiting) {
		err = waiting.Err
	}
	return process.Usage(process.Worded{
		Text: fmt.Sprintf("%v; the broker says: %s; omi doctor says what this account lacks", process.Plain(err), denial(last)), Err: err,
	})
}

// openSession asks the registry for its identity. It asks and sends nothing more if --trust does
// not name the registry's key, because the answers would not be believed.
func openSession(ctx context.Context, nc *nats.Conn, trusted process.Trust) (*session, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	s := &session{nc: nc, js: js}
	info, err := registryclient.RegistryInfo(ctx, nc)
	if process.WaitedInVain(err) {
		err = fmt.Errorf("%w: look at its log, or wait longer with --timeout", err)
	}
	if err != nil {
		return nil, coded(err)
	}
	s.info = info
	if trusted.Origin != "" && trusted.Origin != info.Origin {
		return nil, process.Refused(fmt.Errorf("the registry here answers for %s, and --origin says %s: it is another registry, or "+
			"--nats-url is wrong", info.Origin, trusted.Origin))
	}
	if len(trusted.Keys) > 0 || trusted.File != "" {
		trusted.Origin = info.Origin
		if s.trust, err = trusted.Load(); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(info.PublicKeys, func(k events.PublicKey) bool { return slices.Contains(s.trust.PublicKeys(), k) }) {
			return nil, process.Refused(fmt.Errorf("the registry here signs with %s, which --trust does not name: it is another registry, "+
				"or its key was changed; ask its operator", keyList(info.PublicKeys)))
		}
		return s, nil
	}
	if s.trust, err = events.NewTrust(info.Origin, info.PublicKeys...); err != nil {
		return nil, fmt.Errorf("the registry's own description: %w", err)
	}
	return s, nil
}

func (s *session) sender() registryclient.Sender {
	return registryclient.Sender{JetStream: s.js, Trust: s.trust}
}

func (s *session) registry() registryclient.Registry {
	return registryclient.Registry{Conn: s.nc, Trust: s.trust}
}

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

// coded gives an error of a lookup its exit code: a refusal, an answer that can't be believed, or
// no answer.
func coded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registryclient.ErrUnknownService), errors.As(err, new(*api.Problem)), errors.As(err, new(*events.Refusal)):
		return process.Refused(err)
	default:
		return process.Unreachable(err)
	}
}
