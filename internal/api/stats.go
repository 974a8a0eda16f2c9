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

// queueGroup is the one that micro has: of several instances of a service, one gets each call.
const queueGroup = "q"

// Registered is a service that answers over NATS until it is stopped. It answers what `nats micro` asks ($SRV.PING, INFO and
// STATS), by the types of nats.go's package micro, and not by that package's own service: that counts a call when its handler
// returns. Ours return at once, so that a slow answer holds up no other, and the numbers would be 0 errors and next to no time.
type Registered struct {
	ping    micro.Ping
	info    micro.Info
	started time.Time
	counted []*calls
	subs    []*nats.Subscription
}

func newRegistered(s Service) *Registered {
	identity := micro.ServiceIdentity{Name: s.Name, ID: rand.Text(), Version: s.Version, Metadata: map[string]string{}}
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

// describe answers who asks for every service, for those of this name, or for this one.
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
					_ = m.Respond(body) // the connection is gone, and whoever asked asks again
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

// Stop answers what has come, and no more. It fails only if the connection is gone.
func (r *Registered) Stop() error {
	for _, sub := range r.subs {
		if err := sub.Drain(); err != nil {
			return fmt.Errorf("drain %s: %w", sub.Subject, err)
		}
	}
	return nil
}

// Stats is what became of the calls so far, as `nats micro stats` shows it.
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

// calls counts what became of an endpoint's calls.
type calls struct {
	mu    sync.Mutex
	stats micro.EndpointStats
}

// count takes an answered call: how long it took, and the problem that the answer was, if it was one.
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
