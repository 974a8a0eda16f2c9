package demo

import (
	"context"
	"crypto"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/session"
)

const (
	clientCount = 4
	clientPause = time.Millisecond
)

// tally counts Auth's answers.
type tally struct {
	verified, refused               atomic.Int64 // as they should be
	wronglyRefused, wronglyAccepted atomic.Int64
	first                           atomic.Pointer[string] // the first failure
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

// clients are callers of the service that sign as it does, and an intruder who tries keys that must
// not pass.
type clients struct {
	tally  *tally
	signer crypto.Signer // the service's
	verify func(ctx context.Context, key crypto.Signer) (events.VerifyAnswer, error)

	stopAll context.CancelFunc
	running sync.WaitGroup

	underWay sync.RWMutex // held for reading from signing to the answer

	mu    sync.Mutex
	ended []endedKey
}

// endedKey is a key that must be refused from this time on.
type endedKey struct {
	key  crypto.Signer
	from int64
}

func newClients(t *tally) *clients { return &clients{tally: t, stopAll: func() {}} }

func (c *clients) start(ctx context.Context, s *session.Session, t events.Target, signer crypto.Signer) {
	c.signer = signer
	c.verify = func(ctx context.Context, key crypto.Signer) (events.VerifyAnswer, error) {
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

// signOnce is one request of an honest client, which must pass.
func (c *clients) signOnce(ctx context.Context) {
	c.underWay.RLock()
	defer c.underWay.RUnlock()
	switch answer, err := c.verify(ctx, c.signer); {
	case ctx.Err() != nil:
	case err != nil:
		c.tally.wrong(&c.tally.wronglyRefused, err.Error())
	case answer.Result != events.Accepted:
		c.tally.wrong(&c.tally.wronglyRefused, "refused: "+answer.Reason)
	default:
		c.tally.verified.Add(1)
	}
}

// intrudeOnce is one request of the intruder, which must not pass.
func (c *clients) intrudeOnce(ctx context.Context) {
	key := c.pickBad()
	switch answer, err := c.verify(ctx, key); {
	case err != nil:
	case answer.Result != events.Refused:
		c.tally.wrong(&c.tally.wronglyAccepted, fmt.Sprintf("accepted: %v", key.Public()))
	default:
		c.tally.refused.Add(1)
	}
}

// pickBad returns a key that has ended, or one that was never registered.
func (c *clients) pickBad() crypto.Signer {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now().Unix()
	turn := int(c.tally.refused.Load()) % (len(c.ended) + 1)
	if turn < len(c.ended) && c.ended[turn].from <= now {
		return c.ended[turn].key
	}
	return events.GenerateSigningKey().Private()
}

// hold waits until no request is under way, and keeps the clients from sending another until
// release.
func (c *clients) hold() { c.underWay.Lock() }

func (c *clients) release() { c.underWay.Unlock() }

// endsAt lets the intruder try a key from its end on.
func (c *clients) endsAt(key crypto.Signer, from int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = append(c.ended, endedKey{key, from})
}

// askAuth signs something and asks Auth whether the signature is good (§8.2).
func askAuth(ctx context.Context, s *session.Session, t events.Target, key crypto.Signer) (events.VerifyAnswer, error) {
	q := events.VerifyQuery{Target: t, Message: make([]byte, 32)}
	_, _ = rand.Read(q.Message) // never fails
	signature, err := key.Sign(nil, q.Message, crypto.Hash(0))
	if err != nil {
		return events.VerifyAnswer{}, err
	}
	if q.Signature, err = events.SignatureFromBytes(signature); err != nil {
		return events.VerifyAnswer{}, err
	}
	// A slow machine must not fail the demo.
	return client.AuthVerifier{Conn: s.Conn, Timeout: playWithin}.Verify(ctx, q)
}
