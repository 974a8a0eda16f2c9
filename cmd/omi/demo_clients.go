package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
)

const (
	clientCount = 4
	clientPause = time.Millisecond
)

// tally counts what Auth said to whom.
type tally struct {
	verified, refused               atomic.Int64 // as it should be
	wronglyRefused, wronglyAccepted atomic.Int64
	first                           atomic.Pointer[string] // what went wrong first
}

func (t *tally) wrong(n *atomic.Int64, what string) {
	n.Add(1)
	t.first.CompareAndSwap(nil, &what)
}

func (t *tally) example() string {
	if what := t.first.Load(); what != nil {
		return *what
	}
	return "none"
}

// clients are callers of the service that sign with its key, and an intruder who tries keys that must not pass.
type clients struct {
	tally  *tally
	verify func(ctx context.Context, key events.SigningKey) (events.VerifyAnswer, error)

	stopAll context.CancelFunc
	running sync.WaitGroup

	signing sync.RWMutex // held for reading from signing to the answer, and for writing while there is no key
	current events.SigningKey

	mu    sync.Mutex
	known map[events.PublicKey]events.SigningKey
	ended []endedKey
}

// endedKey is a key that must be refused from a time on.
type endedKey struct {
	key  events.SigningKey
	from int64
}

func newClients(t *tally) *clients {
	return &clients{tally: t, known: map[events.PublicKey]events.SigningKey{}, stopAll: func() {}}
}

func (c *clients) start(ctx context.Context, s *session, t events.Target) {
	c.verify = func(ctx context.Context, key events.SigningKey) (events.VerifyAnswer, error) {
		return askAuth(ctx, s, t, key)
	}
	ctx, c.stopAll = context.WithCancel(ctx)
	for range clientCount {
		c.running.Go(func() { c.loop(ctx, c.signOnce) })
	}
	c.running.Go(func() { c.loop(ctx, c.intrudeOnce) })
}

func (c *clients) stop() {
	c.stopAll()
	c.running.Wait()
}

func (c *clients) loop(ctx context.Context, once func(context.Context)) {
	ticker := time.NewTicker(clientPause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			once(ctx)
		}
	}
}

// signOnce is one request of an honest client: it must pass.
func (c *clients) signOnce(ctx context.Context) {
	c.signing.RLock()
	defer c.signing.RUnlock()
	switch answer, err := c.verify(ctx, c.current); {
	case ctx.Err() != nil:
	case err != nil:
		c.tally.wrong(&c.tally.wronglyRefused, err.Error())
	case answer.Result != events.Accepted:
		c.tally.wrong(&c.tally.wronglyRefused, "refused: "+answer.Reason)
	default:
		c.tally.verified.Add(1)
	}
}

// intrudeOnce is one request of the intruder: it must not pass.
func (c *clients) intrudeOnce(ctx context.Context) {
	key := c.pickBad()
	switch answer, err := c.verify(ctx, key); {
	case err != nil:
	case answer.Result != events.Refused:
		c.tally.wrong(&c.tally.wronglyAccepted, "accepted: "+key.Public().String())
	default:
		c.tally.refused.Add(1)
	}
}

// pickBad returns one of the keys that have ended, or one that nobody registered.
func (c *clients) pickBad() events.SigningKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now().Unix()
	turn := int(c.tally.refused.Load()) % (len(c.ended) + 1)
	if turn < len(c.ended) && c.ended[turn].from <= now {
		return c.ended[turn].key
	}
	return events.GenerateSigningKey()
}

// key returns the key that the clients sign with.
func (c *clients) key() events.SigningKey {
	c.signing.RLock()
	defer c.signing.RUnlock()
	return c.current
}

// announce keeps a new private key until a receipt makes it current. The first one is current at once.
func (c *clients) announce(key events.SigningKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[key.Public()] = key
	if c.current.IsZero() {
		c.current = key
	}
}

func (c *clients) announced(key events.PublicKey) events.SigningKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[key]
}

// switchTo makes the clients sign with another key, and returns the one before.
func (c *clients) switchTo(key events.SigningKey) (old events.SigningKey) {
	old = c.hold()
	c.release(key)
	return old
}

// hold waits until no signature is under way, and keeps the clients from making another until release.
func (c *clients) hold() (old events.SigningKey) {
	c.signing.Lock()
	return c.current
}

func (c *clients) release(key events.SigningKey) {
	c.current = key
	c.signing.Unlock()
}

// endsAt lets the intruder try a key, from its end on.
func (c *clients) endsAt(key events.SigningKey, from int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = append(c.ended, endedKey{key, from})
}

// askAuth signs something and asks Auth whether the signature is good (§8.2).
func askAuth(ctx context.Context, s *session, t events.Target, key events.SigningKey) (events.VerifyAnswer, error) {
	var answer events.VerifyAnswer
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails
	query, err := json.Marshal(map[string]string{
		"app_id": t.App.String(), "service_id": t.Service.String(),
		"message": base64.RawURLEncoding.EncodeToString(message), "signature": key.Sign(message).String(),
	})
	if err != nil {
		return answer, fmt.Errorf("encode the question: %w", err)
	}
	reply, err := s.ask(ctx, events.AuthVerifySubject, query)
	if err != nil {
		return answer, fmt.Errorf("ask Auth: %w", err)
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return answer, errors.Join(errors.New("read Auth's answer"), err)
	}
	return answer, nil
}
