package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/events"
)

const (
	// answerWithin bounds the work for a caller who has long stopped waiting.
	answerWithin = 10 * time.Second
	// inFlight is how many calls one endpoint works on at a time; more wait at the broker's side.
	inFlight = 64
)

// Service names a micro service, as `nats micro ls` shows it, with the version of the build.
type Service struct {
	Name, Description string
}

// Register serves the endpoints over NATS until the returned service is stopped, or ctx ends.
func Register(ctx context.Context, nc *nats.Conn, log *slog.Logger, s Service, endpoints ...Endpoint) (*Registered, error) {
	service := newRegistered(s)
	for _, e := range endpoints {
		if e.Subject == "" {
			continue
		}
		subject := e.Subject
		if strings.HasSuffix(subject, ".") {
			subject += ">"
		}
		counted := &calls{}
		if err := service.listen(nc, e.Name, subject, counted, e.handler(ctx, nc, log, counted)); err != nil {
			_ = service.Stop()
			return nil, fmt.Errorf("register the service %s: %w", s.Name, err)
		}
	}
	if err := service.describe(nc); err != nil {
		_ = service.Stop()
		return nil, fmt.Errorf("register the service %s: %w", s.Name, err)
	}
	return service, nil
}

func (e Endpoint) handler(ctx context.Context, nc *nats.Conn, log *slog.Logger, counted *calls) nats.MsgHandler {
	free := make(chan struct{}, inFlight)
	return func(m *nats.Msg) {
		if !answerable(m.Reply) {
			log.Debug("not answered: its reply subject is not the caller's own", "endpoint", e.Name)
			return
		}
		free <- struct{}{}
		go func() {
			// stays so if the handler panics
			began, told := time.Now(), problem(http.StatusInternalServerError, "", "")
			defer func() {
				if v := recover(); v != nil { // no message may stop the process
					log.Error("handler panics", "endpoint", e.Name, "panic", v, "stack", string(debug.Stack()))
				}
				counted.count(told, time.Since(began))
				<-free
			}()
			told = e.respond(ctx, nc, log, m)
		}()
	}
}

// answerable reports whether an answer may be published to a reply subject. The caller names that
// subject, and the answer is published with our rights, which may be those of the registry. With
// omi.v1.invalidations.… a stranger could fill that stream, and push a service's events out of the
// 64 that are kept. With $JS.API.… and $JS.ACK.… a stranger could change streams and consumers. No
// honest caller waits for an answer there.
func answerable(reply string) bool {
	return !strings.HasPrefix(reply, "omi.") && !strings.HasPrefix(reply, "$")
}

// respond answers, and returns the answer if it is a problem document.
func (e Endpoint) respond(ctx context.Context, nc *nats.Conn, log *slog.Logger, m *nats.Msg) *Problem {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answer, err := e.answer(ctx, m)
	if err == nil && int64(len(answer.Body)) > nc.MaxPayload() {
		err = answerTooLarge()
	}
	reply := nats.NewMsg(m.Reply)
	var told *Problem
	if err == nil {
		reply.Data = answer.Body
	} else {
		logFault(ctx, log, e.Name, err)
		told = problemOf(err)
		reply.Data, reply.Header = told.encode(), nats.Header(problemHeaders())
		reply.Header.Set(micro.ErrorCodeHeader, strconv.Itoa(told.Status))
		reply.Header.Set(micro.ErrorHeader, told.Title)
	}
	if err := nc.PublishMsg(reply); err != nil {
		log.Debug("respond", "endpoint", e.Name, "error", err)
	}
	return told
}

func (e Endpoint) answer(ctx context.Context, m *nats.Msg) (Answer, error) {
	if len(m.Data) > events.MaxQuery {
		return Answer{}, requestTooLarge()
	}
	return e.Handle(ctx, e.callOf(m))
}

func problemHeaders() micro.Headers {
	return micro.Headers{"Content-Type": {"application/problem+json"}}
}

// RespondProblem answers a NATS request with a problem document, before its handler returns.
func RespondProblem(r micro.Request, p *Problem) error {
	return r.Error(strconv.Itoa(p.Status), p.Title, p.encode(), micro.WithHeaders(problemHeaders()))
}

func (e Endpoint) callOf(m *nats.Msg) Call {
	c := Call{Body: m.Data}
	if target, ok := strings.CutPrefix(m.Subject, e.Subject); ok {
		if dot := strings.LastIndexByte(target, '.'); dot >= 0 {
			c.AppID, c.ServiceID = target[:dot], target[dot+1:]
		}
	}
	return c
}
