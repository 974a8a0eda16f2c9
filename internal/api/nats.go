package api

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

const (
	// answerWithin bounds the work for a caller who has long stopped waiting.
	answerWithin = 10 * time.Second
	// inFlight is how many calls one endpoint works on at a time; more wait at the broker's side.
	inFlight = 64
)

// Service names a micro service, as `nats micro ls` shows it.
type Service struct {
	Name, Version, Description string
}

// Register serves the endpoints over NATS until the returned service is stopped, or ctx ends.
func Register(ctx context.Context, nc *nats.Conn, log *slog.Logger, s Service, endpoints ...Endpoint) (micro.Service, error) {
	counted := make(map[string]*calls, len(endpoints))
	for _, e := range endpoints {
		counted[e.Name] = &calls{}
	}
	service, err := micro.AddService(nc, micro.Config{
		Name: s.Name, Version: s.Version, Description: s.Description, StatsHandler: statsOf(counted),
	})
	if err != nil {
		return nil, fmt.Errorf("register the service %s: %w", s.Name, err)
	}
	for _, e := range endpoints {
		if e.Subject == "" {
			continue
		}
		subject := e.Subject
		if strings.HasSuffix(subject, ".") {
			subject += ">"
		}
		if err := service.AddEndpoint(e.Name, e.handler(ctx, nc, log, counted[e.Name]), micro.WithEndpointSubject(subject)); err != nil {
			_ = service.Stop()
			return nil, fmt.Errorf("register the endpoint %s: %w", e.Name, err)
		}
	}
	return service, nil
}

func (e Endpoint) handler(ctx context.Context, nc *nats.Conn, log *slog.Logger, counted *calls) micro.Handler {
	free := make(chan struct{}, inFlight)
	return micro.HandlerFunc(func(r micro.Request) {
		if !answerable(r.Reply()) {
			log.Debug("not answered: its reply subject is not the caller's own", "endpoint", e.Name)
			return
		}
		free <- struct{}{}
		go func() {
			defer func() {
				if v := recover(); v != nil { // whatever arrives, it stops no process
					log.Error("handler panics", "endpoint", e.Name, "panic", v, "stack", string(debug.Stack()))
				}
				<-free
			}()
			began := time.Now()
			err := e.respond(ctx, nc, log, r)
			counted.count(err, time.Since(began))
		}()
	})
}

// answerable says whether an answer may be published to a reply subject. The caller names it, and the answer is published with
// our rights, which may be those of the registry: by omi.v1.invalidations.… a stranger could fill that stream, and push a
// service's events out of the 64 that are kept; by $JS.API.… and $JS.ACK.… he could meddle with streams and consumers. Nobody
// waits for an answer there.
func answerable(reply string) bool {
	return !strings.HasPrefix(reply, "omi.") && !strings.HasPrefix(reply, "$")
}

// respond answers by a message of its own, not by the request: what that notes of its answer, micro reads as soon as the
// handler has returned. It returns the handler's error, if the answer is one.
func (e Endpoint) respond(ctx context.Context, nc *nats.Conn, log *slog.Logger, r micro.Request) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	reply := nats.NewMsg(r.Reply())
	answer, err := e.Handle(ctx, e.callOf(r))
	if err == nil && int64(len(answer.Body)) > nc.MaxPayload() {
		err = tooLarge("The answer is larger than a message of this broker may be: ask over HTTP, or for a part of it.")
	}
	if err == nil {
		reply.Data = answer.Body
	} else {
		logFault(ctx, log, e.Name, err)
		p := problemOf(err)
		reply.Data, reply.Header = p.encode(), nats.Header(problemHeaders())
		reply.Header.Set(micro.ErrorCodeHeader, strconv.Itoa(p.Status))
		reply.Header.Set(micro.ErrorHeader, p.Title)
	}
	if err := nc.PublishMsg(reply); err != nil {
		log.Debug("respond", "endpoint", e.Name, "error", err)
	}
	return err
}

func problemHeaders() micro.Headers {
	return micro.Headers{"Content-Type": {"application/problem+json"}}
}

// RespondProblem answers a NATS request with a problem document, before its handler returns.
func RespondProblem(r micro.Request, p *Problem) error {
	return r.Error(strconv.Itoa(p.Status), p.Title, p.encode(), micro.WithHeaders(problemHeaders()))
}

func (e Endpoint) callOf(r micro.Request) Call {
	c := Call{Body: r.Data()}
	if target, ok := strings.CutPrefix(r.Subject(), e.Subject); ok {
		if dot := strings.LastIndexByte(target, '.'); dot >= 0 {
			c.AppID, c.ServiceID = target[:dot], target[dot+1:]
		}
	}
	return c
}
