package api

import (
	"crypto/rand"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	jsonv1 "github.com/go-json-experiment/json/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

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
