// Package api answers the questions of docs/protocol.md §8 over NATS request/reply (nats.go's micro
// services) and over HTTP, from one description.
package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/events"
)

// Endpoint is one question that a service answers.
type Endpoint struct {
	Name    string // of the micro endpoint
	Subject string // on NATS; if it ends in a dot, a target follows (§4); empty: over HTTP only
	// on HTTP, as in [http.ServeMux], with the target as {app_id} and {service_id}; empty: over
	// NATS only
	Pattern string
	Handle  Handler
}

// Handler answers one call. An error that is not a [*Problem] or a [*events.Refusal] is our fault:
// the caller is told to try again.
type Handler func(ctx context.Context, c Call) (Answer, error)

// Call is one question. AppID and ServiceID are as the caller wrote them.
type Call struct {
	AppID, ServiceID string
	PublicKey        string // over HTTP
	Body             []byte
	Parameters       url.Values // query parameters, over HTTP
}

// Target returns the service that the call is about. An ID that breaks §1 is a 400.
func (c Call) Target() (events.Target, error) {
	app, err := events.ParseAppID(c.AppID)
	if err != nil {
		return events.Target{}, BadRequest(events.InvalidField, err.Error())
	}
	service, err := events.ParseServiceID(c.ServiceID)
	if err != nil {
		return events.Target{}, BadRequest(events.InvalidField, err.Error())
	}
	return events.Target{App: app, Service: service}, nil
}

// Answer is the answer to a call. Empty fields mean JSON that must not be cached.
type Answer struct {
	Body         []byte
	ContentType  string
	CacheControl string
}

// JSON encodes an answer.
func JSON(v any) (Answer, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return Answer{}, fmt.Errorf("encode the answer: %w", err)
	}
	return Answer{Body: body}, nil
}

// Problem is an RFC 9457 problem document.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitzero"`
	Reason string `json:"reason,omitzero"` // the reason code of §6, if there is one (§8)

	// Statement is the registry's signed statement that a service was never bound.
	Statement jsontext.Value `json:"statement,omitzero"`

	// RetryAfter is after how many seconds the caller may try again, if that is known.
	RetryAfter int `json:"-"`
}

// Error implements error.
func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

// UnknownService is the answer about a service that was never bound. A reader need not believe it
// unless the registry has signed a statement.
func UnknownService(detail string, statement []byte) *Problem {
	p := problem(http.StatusNotFound, events.UnknownService, detail)
	p.Statement = statement
	return p
}

// Unavailable is the answer while something that it needs is unavailable.
func Unavailable(detail string) *Problem { return problem(http.StatusServiceUnavailable, "", detail) }

// requestTooLarge is the answer to a question that is larger than §8 allows.
func requestTooLarge() *Problem {
	return problem(http.StatusRequestEntityTooLarge, events.MalformedMessage, "The request is larger than 64 KiB.")
}

// answerTooLarge replaces an answer that the broker would not take.
func answerTooLarge() *Problem {
	return TooLarge("The answer is larger than a message of this broker may be: ask over HTTP, or for a part of it.")
}

// TooLarge is the answer to a caller who asks for more than an answer may hold.
func TooLarge(detail string) *Problem {
	return problem(http.StatusRequestEntityTooLarge, "", detail)
}

// BadRequest is the answer to a malformed question.
func BadRequest(reason events.Reason, detail string) *Problem {
	return problem(http.StatusBadRequest, reason, detail)
}

func problem(status int, reason events.Reason, detail string) *Problem {
	return &Problem{Title: http.StatusText(status), Status: status, Detail: detail, Reason: string(reason)}
}

// problemOf returns what a caller is told about an error. It shows nothing internal.
func problemOf(err error) *Problem {
	if p := (*Problem)(nil); errors.As(err, &p) {
		return p
	}
	if r := (*events.Refusal)(nil); errors.As(err, &r) {
		return BadRequest(r.Reason, r.Detail)
	}
	return Unavailable("The answer can't be given right now; try again.")
}

func (p *Problem) encode() []byte {
	body, err := json.Marshal(p)
	if err != nil {
		return nil // strings, an int and a JSON value can always be encoded
	}
	return body
}

const module = "omiappreg.org/keyrotation"

// buildVersion returns the version of this module in the running program, in the form that micro
// services announce (SemVer, without a v).
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionIn(info)
}

func versionIn(info *debug.BuildInfo) string {
	found := info.Main.Version
	for _, dependency := range info.Deps { // the program's own module may be another one
		if dependency.Path == module {
			found = dependency.Version
		}
	}
	if version, ok := strings.CutPrefix(found, "v"); ok {
		return version
	}
	return "0.0.0-devel"
}

// queueGroup is the one that micro uses: each call goes to one of several instances of a service.
const queueGroup = "q"

// Registered is a service that answers over NATS until it is stopped. It answers the questions of
// `nats micro` ($SRV.PING, INFO and STATS) with the types of nats.go's package micro. It doesn't
// use that package's own service, which counts a call when its handler returns. Our handlers return
// at once, so that a slow answer holds up no other. The package would count 0 errors and almost no
// time.
type Registered struct {
	ping    micro.Ping
	info    micro.Info
	started time.Time
	counted []*calls
	subs    []*nats.Subscription
}

func newRegistered(s Service) *Registered {
	identity := micro.ServiceIdentity{Name: s.Name, ID: rand.Text(), Version: buildVersion(), Metadata: map[string]string{}}
	return &Registered{
		ping:    micro.Ping{ServiceIdentity: identity, Type: micro.PingResponseType},
		info:    micro.Info{ServiceIdentity: identity, Type: micro.InfoResponseType, Description: s.Description},
		started: time.Now().UTC(),
	}
}

// listen answers the calls of one endpoint.
func (r *Registered) listen(nc *nats.Conn, name, subject string, counted *calls, answer nats.MsgHandler) error {
	sub, err := nc.QueueSubscribe(subject, queueGroup, answer)
	if err != nil {
		return fmt.Errorf("listen for calls of %s: %w", name, err)
	}
	counted.stats = micro.EndpointStats{Name: name, Subject: subject, QueueGroup: queueGroup}
	r.counted, r.subs = append(r.counted, counted), append(r.subs, sub)
	r.info.Endpoints = append(r.info.Endpoints, micro.EndpointInfo{
		Name: name, Subject: subject, QueueGroup: queueGroup, Metadata: map[string]string{},
	})
	return nil
}

// describe answers questions to every service, to those of this name, or to this one.
func (r *Registered) describe(nc *nats.Conn) error {
	for verb, tell := range map[micro.Verb]func() any{
		micro.PingVerb:  func() any { return r.ping },
		micro.InfoVerb:  func() any { return r.info },
		micro.StatsVerb: func() any { return r.Stats() },
	} {
		for _, whom := range [][2]string{{"", ""}, {r.info.Name, ""}, {r.info.Name, r.info.ID}} {
			subject, err := micro.ControlSubject(verb, whom[0], whom[1])
			if err != nil {
				return fmt.Errorf("name the subject of %v: %w", verb, err)
			}
			sub, err := nc.Subscribe(subject, func(m *nats.Msg) {
				if body, err := json.Marshal(tell(), jsonv1.FormatDurationAsNano(true)); err == nil && answerable(m.Reply) {
					_ = m.Respond(body) // if the connection is gone, the caller asks again
				}
			})
			if err != nil {
				return fmt.Errorf("listen on %s: %w", subject, err)
			}
			r.subs = append(r.subs, sub)
		}
	}
	return nil
}

// Stop answers the calls that have come, and no more. It fails only if the connection is gone.
func (r *Registered) Stop() error {
	for _, sub := range r.subs {
		if err := sub.Drain(); err != nil {
			return fmt.Errorf("drain %s: %w", sub.Subject, err)
		}
	}
	return nil
}

// Stats returns the results of the calls so far, as `nats micro stats` shows them.
func (r *Registered) Stats() micro.Stats {
	s := micro.Stats{
		ServiceIdentity: r.info.ServiceIdentity, Type: micro.StatsResponseType, Started: r.started, Endpoints: []*micro.EndpointStats{},
	}
	s.Metadata = maps.Clone(s.Metadata)
	for _, c := range r.counted {
		s.Endpoints = append(s.Endpoints, c.now())
	}
	return s
}

// calls counts the results of an endpoint's calls.
type calls struct {
	mu    sync.Mutex
	stats micro.EndpointStats
}

// count records an answered call: its duration, and the problem document if that was the answer.
func (c *calls) count(p *Problem, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.NumRequests++
	c.stats.ProcessingTime += took
	c.stats.AverageProcessingTime = c.stats.ProcessingTime / time.Duration(c.stats.NumRequests)
	if p != nil {
		c.stats.NumErrors++
		c.stats.LastError = fmt.Sprintf("%d:%s", p.Status, p.Title) // as micro writes it
	}
}

func (c *calls) now() *micro.EndpointStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := c.stats
	return &stats
}
