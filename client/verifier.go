package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/verify"
	"omiappreg.org/keyrotation/streams"
)

// Why a question could not be answered. None of them says anything about the signature: tell the
// caller to try again, and not that the signature was refused.
var (
	// ErrStale means that the receiver's knowledge is too old to answer from.
	ErrStale = errors.New("the known keys of services are too old to answer from: is the broker unavailable?")
	// ErrNotReady means that the invalidations were not yet read to their end as of the start.
	ErrNotReady = errors.New("the invalidations up to the start have not been read yet: try again in a moment")
)

const (
	// defaultMaxAge outlasts a broker's restart and the choice of a new leader, which take seconds.
	// A key that was ended at once, by a Master Reset, is accepted for no longer than this by a
	// receiver that can't hear of it.
	defaultMaxAge = time.Minute
	// freshFor is how old knowledge may be to deny that a service has a newer key. While the broker
	// is there, knowledge is at most askEvery old plus the time of the question.
	freshFor = 5 * time.Second
)

// VerifierConfig says whom a Verifier believes, and for which services it answers. Conn and Trust
// are required.
type VerifierConfig struct {
	// Conn is the connection to the broker. It must be one that reconnects for ever
	// ([nats.MaxReconnects] of -1): when it is closed, Run ends.
	Conn *nats.Conn
	// Trust is the registry's domain name and its public keys. Take them from the same place as
	// your configuration, not from the broker.
	Trust events.Trust
	// Peers are the services that may call. Only their events are read. Any other service is
	// refused as unknown, whatever the registry says of it. Empty: all services. The broker filters
	// by their names, so name hundreds of them at most.
	Peers []events.Target
	// Receiver is the name by which the broker knows this receiver, if its account may use no other
	// names for its consumers (omi-registry nats receiver --name). All its processes have the same.
	// Empty: any names.
	Receiver string
	// MaxAge is how old knowledge may be to answer from; beyond it the answer is ErrStale. A
	// receiver that is cut off from the broker accepts a key that was ended meanwhile for as long.
	// At least 5 s; default 1 minute.
	MaxAge time.Duration
	// Log gets a line about interruptions, and about messages that can't be believed. Nil disables
	// it.
	Log *slog.Logger
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Verifier reports whether a signature is good now (docs/protocol.md §8.2), as the Auth Provider
// does, in the receiver's own process: it follows the registry's invalidations and keeps the keys
// in memory. It believes only what the registry's key signed, and asks no other party about a key
// that it knows.
//
// A service may be quicker than the event of its new key. So a signature that no known key made is
// checked against the registry's record of the service: one question per service and second, a few
// at a time.
//
// Events are signed, silence is not. A broker can't make a Verifier believe anything, but it can
// withhold an event, and no reader could tell.
type Verifier struct {
	cfg      VerifierConfig
	started  time.Time
	peers    map[events.Target]struct{} // nil: all
	memory   *verify.Memory
	follower *follower
}

// NewVerifier returns a Verifier that knows nothing until [Verifier.Run] runs.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	cfg.MaxAge = cmp.Or(cfg.MaxAge, defaultMaxAge)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	v := &Verifier{cfg: cfg, started: cfg.Now()}
	if err := v.setUp(); err != nil {
		return nil, fmt.Errorf("set up the verifier: %w", err)
	}
	return v, nil
}

func (v *Verifier) setUp() error {
	switch {
	case v.cfg.Conn == nil:
		return errors.New("no connection to the broker given")
	case v.cfg.Trust.Origin() == "":
		return events.ErrNoTrust
	case v.cfg.MaxAge < freshFor:
		return fmt.Errorf("a MaxAge of %v is too short: the broker is asked every %v, so it is %v at least",
			v.cfg.MaxAge, askEvery, freshFor)
	}
	for _, peer := range v.cfg.Peers {
		if v.peers == nil {
			v.peers = make(map[events.Target]struct{}, len(v.cfg.Peers))
		}
		v.peers[peer] = struct{}{}
	}
	js, err := jetstream.New(v.cfg.Conn)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	v.memory, err = verify.New(verify.Config{
		Registry: registryclient.Registry{Conn: v.cfg.Conn, Trust: v.cfg.Trust, Now: v.cfg.Now}, Log: v.cfg.Log, Now: v.cfg.Now,
	})
	if err != nil {
		return err
	}
	v.follower = newFollower(js, v.cfg, v.peers, v.memory.Apply)
	return nil
}

// Run follows the invalidations until ctx ends, and then returns nil. It waits for a broker or a
// stream that is unavailable. Only a closed connection ends it with an error. Call it once.
func (v *Verifier) Run(ctx context.Context) error {
	if err := v.follower.run(ctx); err != nil {
		return fmt.Errorf("follow the invalidations: %w", err)
	}
	return nil
}

// Ready returns nil once the stream has been read to its end as of the start, and [ErrNotReady]
// before. It stays nil while the broker is unavailable: the knowledge then grows older, as
// [Verifier.AsOf] says, until Verify no longer answers.
func (v *Verifier) Ready() error {
	if v.AsOf().Before(v.started) {
		return ErrNotReady
	}
	return nil
}

// AsOf returns the time up to which the stream is known, and the zero time before that is known.
// While the broker is unavailable, it stays where it was.
func (v *Verifier) AsOf() time.Time { return v.follower.asOf() }

// Ignored returns how many messages of the stream could not be believed: signed by an untrusted
// key, or about another service than its subject's. They have no effect. The log names them.
func (v *Verifier) Ignored() uint64 { return v.follower.ignored.Load() }

// Verify reports whether a signature is good now, with the answers and reasons of §8.2. Any number
// of goroutines may call it. It fails with [ErrNotReady], or with [ErrStale]: beyond MaxAge; or
// earlier, if no known key made the signature and there may be a newer one of which neither the
// stream nor the registry could tell for some seconds.
func (v *Verifier) Verify(ctx context.Context, q events.VerifyQuery) (events.VerifyAnswer, error) {
	asOf := v.AsOf() // before the keys are looked at: they are at least as new
	if _, ok := v.peers[q.Target]; !ok && v.peers != nil {
		return events.VerifyAnswer{Result: events.Refused, Reason: string(events.UnknownService), AsOf: unixSeconds(asOf)}, nil
	}
	if asOf.Before(v.started) {
		return events.VerifyAnswer{}, ErrNotReady
	}
	if old := knownFor(asOf, v.cfg.Now()); old > v.cfg.MaxAge {
		return events.VerifyAnswer{}, fmt.Errorf("%w (known up to %s, %v ago)",
			ErrStale, asOf.UTC().Format(time.RFC3339), old.Round(time.Second))
	}
	answer, final := v.memory.Verify(ctx, q)
	if !final && knownFor(asOf, v.cfg.Now()) > freshFor {
		const why = "no key that was known at %s made the signature, and the registry gives no answer"
		return events.VerifyAnswer{}, fmt.Errorf("%w ("+why+")", ErrStale, asOf.UTC().Format(time.RFC3339))
	}
	answer.AsOf = unixSeconds(asOf)
	return answer, nil
}

// knownFor is the time that has passed since then, by either clock: the monotonic one stands still
// while a machine sleeps, and the wall clock can be set back.
func knownFor(then, now time.Time) time.Duration {
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)))
}

// unixSeconds is a time in the protocol's form; 0: not known.
func unixSeconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// receiverNames are the names that a receiver's consumers may have, one for each of its processes.
type receiverNames struct {
	receiver string // empty: any names

	have string // the name of this process's consumer; empty: none
}

// create makes a consumer by a name that no other process has. Only one goroutine calls it.
func (r *receiverNames) create(ctx context.Context, js jetstream.JetStream, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	const stream = streams.Invalidations
	if r.receiver == "" {
		return js.CreateConsumer(ctx, stream, cfg)
	}
	if r.have != "" { // otherwise it holds its name until the broker has forgotten it
		if err := js.DeleteConsumer(ctx, stream, r.have); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, fmt.Errorf("delete the consumer %s: %w", r.have, err)
		}
		r.have = ""
	}
	// Without it, a consumer that is just the same would be shared.
	cfg.Metadata = map[string]string{"omi-reader": rand.Text()}
	for n := 1; n <= streams.ReceiverConsumers; n++ {
		cfg.Name = streams.ReceiverConsumer(r.receiver, n)
		consumer, err := js.CreateConsumer(ctx, stream, cfg)
		switch {
		case err == nil:
			r.have = cfg.Name
			return consumer, nil
		// If the name is beyond those that it may have, the broker tells the connection.
		case !errors.Is(err, jetstream.ErrConsumerExists):
			return nil, fmt.Errorf("make the consumer %s: %w", cfg.Name, err)
		}
	}
	return nil, fmt.Errorf("all consumers that the receiver %s may have are in use", r.receiver)
}
