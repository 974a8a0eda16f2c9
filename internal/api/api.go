// Package api answers the questions of docs/protocol.md §8, each over NATS request/reply (nats.go's micro services)
// and over HTTP alike, from one description.
package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"omiappreg.org/keyrotation/events"
)

// Endpoint is one question that a service answers.
type Endpoint struct {
	Name    string // of the micro endpoint
	Subject string // on NATS; one that ends in a dot takes a target (§4); empty: over HTTP only
	Pattern string // on HTTP, as [http.ServeMux] takes it; the target is {app_id} and {service_id}; empty: over NATS only
	Handle  Handler
}

// Handler answers one call. An error that is not a [*Problem] or a [*events.Refusal] is a fault of ours: the caller
// is told to try again.
type Handler func(ctx context.Context, c Call) (Answer, error)

// Call is one question. AppID and ServiceID are as the caller wrote them.
type Call struct {
	AppID, ServiceID string
	PublicKey        string // over HTTP
	Body             []byte
	Parameters       url.Values // of the address, over HTTP
}

// Target returns the service that the call is about; an id that breaks §1 is a 400.
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

// Answer is what goes back. Empty members mean JSON that must not be cached.
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
	Reason string `json:"reason,omitzero"` // the code of §6 that says why, where one does (§8)

	// Statement is what the registry signs of it: that a service was never bound.
	Statement jsontext.Value `json:"statement,omitzero"`

	// RetryAfter is after how many seconds the caller may try again, where that is known.
	RetryAfter int `json:"-"`
}

// Error implements error.
func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

// UnknownService is the answer about a service that was never bound. Unless the registry has signed a statement, nobody has to
// believe it.
func UnknownService(detail string, statement []byte) *Problem {
	p := problem(http.StatusNotFound, events.UnknownService, detail)
	p.Statement = statement
	return p
}

// Unavailable is the answer while something that it needs is away.
func Unavailable(detail string) *Problem { return problem(http.StatusServiceUnavailable, "", detail) }

// requestTooLarge is the answer to a question that is larger than §8 lets it be.
func requestTooLarge() *Problem {
	return problem(http.StatusRequestEntityTooLarge, events.MalformedMessage, "The request is larger than 64 KiB.")
}

// answerTooLarge comes instead of an answer that the broker would not take.
func answerTooLarge() *Problem {
	return TooLarge("The answer is larger than a message of this broker may be: ask over HTTP, or for a part of it.")
}

// TooLarge is the answer to who asks for more than an answer may hold.
func TooLarge(detail string) *Problem {
	return problem(http.StatusRequestEntityTooLarge, "", detail)
}

// BadRequest is the answer to a question that breaks its form.
func BadRequest(reason events.Reason, detail string) *Problem {
	return problem(http.StatusBadRequest, reason, detail)
}

func problem(status int, reason events.Reason, detail string) *Problem {
	return &Problem{Title: http.StatusText(status), Status: status, Detail: detail, Reason: string(reason)}
}

// problemOf says what a caller is told about an error: nothing of our insides.
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
		return nil // strings, an int and what was JSON before always have a JSON form
	}
	return body
}
