package registryclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
)

var (
	// ErrUnknownService means that the registry has signed that it has never bound this service.
	ErrUnknownService = errors.New("the service was never bound")
	// errUnsigned means that the answer is not signed. Any party that may answer at the broker
	// could say so of any service.
	errUnsigned = errors.New("the answer is that the service was never bound, but the registry's signature is missing: " +
		"is the registry older than this program, or busy (try again), or does another program answer for it?")
	// ErrNoRegistry means that the broker is there, and no registry answers.
	ErrNoRegistry = errors.New("the broker answers, but no registry does: is omi-registry (or `omi dev`) running there?")
	// ErrUntrusted means that a registry answered whose signatures can't be believed.
	ErrUntrusted = errors.New("the registry here is not the one that is trusted")
)

// Registry asks the registry. Trust says whose answers are believed.
type Registry struct {
	Conn  *nats.Conn
	Trust events.Trust
	Now   func() time.Time // time.Now if nil
}

func (r Registry) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// ServiceRecord returns what the registry knows of a service now (§8.1), or [ErrUnknownService] or
// [ErrNoRegistry].
func (r Registry) ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error) {
	document, err := r.about(ctx, events.LookupServiceSubject, target, nil)
	if err != nil {
		return events.ServiceRecord{}, fmt.Errorf("look up the service %s: %w", target, err)
	}
	record, err := r.Trust.ServiceRecord(target, document)
	if err != nil {
		return events.ServiceRecord{}, fmt.Errorf("look up the service %s: %w", target, untrusted(err))
	}
	return record, nil
}

// untrusted marks the error of a document that another registry, or another key, has signed.
func untrusted(err error) error {
	refusal := (*events.Refusal)(nil)
	if errors.As(err, &refusal) && (refusal.Reason == events.UntrustedSignature || refusal.Reason == events.WrongOrigin) {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return err
}

// Trusted asks the registry who it is, and returns [ErrUntrusted] if none of its signatures would
// be believed. Any other error means that the registry did not answer.
func (r Registry) Trusted(ctx context.Context) error {
	info, err := RegistryInfo(ctx, r.Conn)
	if err != nil {
		return err
	}
	trusted := r.Trust.PublicKeys()
	if info.Origin == r.Trust.Origin() &&
		slices.ContainsFunc(info.PublicKeys, func(k events.PublicKey) bool { return slices.Contains(trusted, k) }) {
		return nil
	}
	return fmt.Errorf("%w: it is %s and signs with %s, and what is trusted is %s with %s; if its operator has changed its key, "+
		"trust the new one", ErrUntrusted, info.Origin, texts(info.PublicKeys), r.Trust.Origin(), texts(trusted))
}

func texts(keys []events.PublicKey) string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = k.String()
	}
	return strings.Join(list, ", ")
}

func (r Registry) about(ctx context.Context, subject string, target events.Target, question []byte) ([]byte, error) {
	document, err := askRegistry(ctx, r.Conn, subject+target.String(), question)
	if problem := (*api.Problem)(nil); errors.As(err, &problem) && problem.Status == http.StatusNotFound {
		return nil, r.neverBound(target, problem)
	}
	return document, err
}

// neverBound returns the error for a 404: [ErrUnknownService] if the registry has signed it.
func (r Registry) neverBound(target events.Target, problem *api.Problem) error {
	if len(problem.Statement) == 0 {
		return errUnsigned
	}
	if err := r.Trust.Unbound(target, problem.Statement, r.now().Unix()); err != nil {
		return fmt.Errorf("the answer is that the service was never bound: %w", untrusted(err))
	}
	return ErrUnknownService
}

// RegistryInfo returns what the registry at the broker says of itself, or [ErrNoRegistry]. The
// answer is not signed: whether to trust the keys that it names, the reader must know from another
// source.
func RegistryInfo(ctx context.Context, conn *nats.Conn) (events.RegistryInfo, error) {
	var info events.RegistryInfo
	document, err := askRegistry(ctx, conn, events.LookupRegistrySubject, nil)
	if err != nil {
		return info, err
	}
	if info, err = events.ParseRegistryInfo(document); err != nil {
		return info, fmt.Errorf("read what the registry says of itself: %w", err)
	}
	return info, nil
}

func askRegistry(ctx context.Context, conn *nats.Conn, subject string, question []byte) ([]byte, error) {
	document, err := Ask(ctx, conn, subject, question)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, ErrNoRegistry
	}
	if err != nil {
		return nil, fmt.Errorf("ask the registry: %w", err)
	}
	return document, nil
}

// Ask sends one question of §8 and returns its answer. A refusal by the other side is an
// [*api.Problem] with its words; if there is no other side, the error is [nats.ErrNoResponders].
func Ask(ctx context.Context, conn *nats.Conn, subject string, question []byte) ([]byte, error) {
	reply, err := conn.RequestWithContext(ctx, subject, question)
	if err != nil {
		return nil, err
	}
	code := reply.Header.Get(micro.ErrorCodeHeader)
	if code == "" {
		return reply.Data, nil
	}
	problem := &api.Problem{}
	// it is not a document of the protocol
	if err := json.Unmarshal(reply.Data, problem); err != nil || problem.Title == "" {
		problem = &api.Problem{Title: reply.Header.Get(micro.ErrorHeader), Detail: code}
	}
	problem.Status, _ = strconv.Atoi(code) // no caller looks for a status that is not a number
	return nil, problem
}

// Current is a [Registry] for a process whose trust may change while it runs: it calls Trust for
// each question.
type Current struct {
	Conn  *nats.Conn
	Trust func() events.Trust
}

func (c *Current) registry() Registry { return Registry{Conn: c.Conn, Trust: c.Trust()} }

// ServiceRecord is [Registry.ServiceRecord].
func (c *Current) ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error) {
	return c.registry().ServiceRecord(ctx, target)
}

// HistoryPart is [Registry.HistoryPart].
func (c *Current) HistoryPart(ctx context.Context, target events.Target, after int64) (events.ServiceHistory, error) {
	return c.registry().HistoryPart(ctx, target, after)
}

// Key is [Registry.Key].
func (c *Current) Key(ctx context.Context, key events.PublicKey) (events.KeyRecord, error) {
	return c.registry().Key(ctx, key)
}
