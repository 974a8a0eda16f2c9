package client

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// Config configures a [Client], which keeps the key of one service. Target, Store, Conn and Trust
// are required.
type Config struct {
	Target events.Target
	// Store holds the keys, and the change that is under way. One store belongs to one service.
	Store KeyStore
	// Conn is the connection to the broker. Signing needs none. Give it nats.MaxReconnects(-1), so
	// that changes go on after an outage.
	Conn *nats.Conn
	// Trust is the registry's public key and domain name.
	Trust events.Trust
	// KeyMayBeMissing lets a client open although its key is lost, for a Master Reset. Its Signer
	// fails with ErrNoKey until then.
	KeyMayBeMissing bool
	// Exclusive makes Open fail with ErrLocked if another process changes the keys of the store.
	// Without it, the client would follow that process. It is for tools that change a key and end.
	Exclusive bool
	// JWKS says that others verify the service's signatures by its JWK Set at the registry
	// (docs/jwks.md), and not only by Auth. They may keep a set for as long as the registry
	// announces, 60 s by default, and the old key goes on signing for that long after a rotation. A
	// change that ends the old key at once does not wait.
	JWKS bool
	// Notify is called with each event, one after the other. It must not call the client, nor block
	// for long. Nil disables it.
	Notify func(Event)
	// HoldAtMost bounds how long Sign waits while the accepted key is unknown: in a change that
	// ends the old key at once, and at a start with an unanswered request. Default 2 s.
	HoldAtMost time.Duration
}

// ErrConfig means that a [Config] lacks a required member.
var ErrConfig = errors.New("a client needs Target, Store, Conn and Trust")

// ErrClosed means that the client was closed. A change that is under way goes on when the store is
// opened again.
var ErrClosed = errors.New("the client is closed")

// The errors of a change whose caller has stopped waiting. With the first two the change goes on,
// and after a restart too.
var (
	// ErrNotStored means that the broker has not confirmed the request.
	ErrNotStored = registryclient.ErrNotStored
	// ErrNoAnswer means that the broker has the request, and the registry has not answered it yet.
	ErrNoAnswer = registryclient.ErrNoAnswer
	// ErrNotBegun means that nothing was sent: an earlier change has not settled, or the registry
	// can't be asked.
	ErrNotBegun = errors.New("the change has not begun")
)

// ErrUntrusted means that the registry that answers is not the one of [Config.Trust]: it is another
// one, or its key was changed. Nothing is sent to it, because its answer could not be believed.
// Open the client with the right Trust.
var ErrUntrusted = registryclient.ErrUntrusted

// RefusedError means that the registry refused a request. Its receipt says why.
type RefusedError struct{ Receipt events.Receipt }

// Error implements error.
func (r *RefusedError) Error() string {
	return fmt.Sprintf("refused: %s: %s", r.Receipt.Reason, r.Receipt.Detail)
}

// Client keeps the key of one service. Its methods may be called concurrently.
type Client struct {
	// One goroutine, run, makes all changes. The methods send it commands and wait.

	cfg    Config
	lookup registryclient.Registry
	sender registryclient.Sender

	signing  atomic.Pointer[signing]
	commands chan *command
	stop     context.CancelFunc
	stopped  chan struct{} // closed when run has ended

	// told lets events come one after the other. Only tell holds it, also while Notify runs.
	told sync.Mutex
	// lastFault is of the background, since the last step that succeeded; nil: none.
	lastFault atomic.Pointer[error]
	stored    atomic.Bool // the broker has the request that is under way

	// lost is ErrForeignKey; nil if it is not known to be.
	lost atomic.Pointer[error]

	// found waits for the change that was under way at the start; nil: there was none.
	found *command

	// The fields below belong to run.
	entry    *entry // nil: no change is under way
	release  time.Time
	waiting  []*command // for the answer to the request that is under way
	queue    []*command // for the present change to end
	settling []*command // for there to be no change

	unlock    func() error     // ends the lock of the store
	following bool             // another process has it
	leadNext  time.Time        // when to try again
	changed   <-chan struct{}  // says that the store may have changed
	noticed   <-chan struct{}  // says that the registry has changed the service
	outdated  events.PublicKey // came into the store, and is older than the key that signs

	checkNext time.Time // when the registry is asked which key is current
	checkTill time.Time // it is asked often until then
	checkedAt time.Time
	// checked says that the registry was asked at the start: a pending key may be the current one
	// already.
	checked      bool
	foreign      events.PublicKey // the registry's current key, if it is not in the store
	missingSince time.Time        // and since when
}

const defaultHold = 2 * time.Second

// Open reads the key store, and continues a change that was under way. It needs no broker: until
// one answers, the [Signer] signs with the key that the store holds. ctx bounds the opening only.
//
// If another process has the store ([Locker]), the client follows it: it signs with the store's
// current key, switches when that process has promoted another, fails changes with [ErrLocked], and
// takes over when the lock is free.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Conn == nil || cfg.Store == nil || cfg.Target == (events.Target{}) || cfg.Trust.Origin() == "" {
		return nil, ErrConfig
	}
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	cfg.HoldAtMost = cmp.Or(cfg.HoldAtMost, defaultHold)
	if cfg.Notify == nil {
		cfg.Notify = func(Event) {}
	}
	c := &Client{
		cfg: cfg, lookup: registryclient.Registry{Conn: cfg.Conn, Trust: cfg.Trust},
		sender:   registryclient.Sender{JetStream: js, Trust: cfg.Trust},
		commands: make(chan *command), stopped: make(chan struct{}),
	}
	if err := c.lead(ctx); err != nil {
		return nil, err
	}
	if store, ok := cfg.Store.(tightener); ok {
		if done := store.tighten(); done != "" {
			c.tell(Event{Kind: Tightened, Err: errors.New(done)})
		}
		if open := store.exposed(); open != "" {
			c.tell(Event{Kind: Exposed, Err: errors.New(open)})
		}
	}
	running, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.changed, c.noticed = c.watchStore(running), c.notices(running)
	err = c.recover(ctx)
	if err == nil && !c.following {
		err = c.find(ctx)
	}
	if err != nil {
		stop()
		return nil, errors.Join(err, c.unlock())
	}
	go func() {
		defer close(c.stopped)
		defer func() { _ = c.unlock() }() // if that fails, the lock ends with the process
		defer c.unhold()
		c.run(running)
	}()
	return c, nil
}

// Close stops the client, and lets another process change the keys of the store. The [Signer] keeps
// the key that it has.
func (c *Client) Close() {
	c.stop()
	<-c.stopped
}

// Signer returns the signer of the service.
func (c *Client) Signer() *Signer { return &Signer{c} }

// recover reads the store. If this process leads, it completes a change that was promoted and not
// noted as such.
func (c *Client) recover(ctx context.Context) error {
	var e *entry
	var err error
	if !c.following {
		if e, err = c.underWay(ctx); err != nil {
			return err
		}
	}
	current, err := c.slot(ctx, Current)
	if err != nil {
		return err
	}
	if current == nil && e == nil && !c.cfg.KeyMayBeMissing {
		return fmt.Errorf("%w: bind the service first (omi bind), or reset it if its key is lost (omi reset)", ErrNoKey)
	}
	c.checkNext = time.Now()
	if c.signing.Load() == nil {
		c.use(current)
	} else {
		c.reread(ctx)
	}
	if c.entry = e; e != nil {
		c.hold()
	}
	return nil
}

// find notes what [Client.Resume] waits for: the answer to the request under way, or whether a
// pending key without a request is the registry's current key.
func (c *Client) find(ctx context.Context) error {
	pending, err := c.slot(ctx, Pending)
	if pending == nil || err != nil {
		return err
	}
	c.found = &command{draft: events.Draft{Kind: events.Rotation}, done: make(chan result, 1)}
	if c.entry != nil {
		c.found.draft.Kind = c.entry.Kind
		if c.found.draft.EndEarlier = c.entry.EndEarlier; c.entry.EndEarlier {
			c.found.draft.GracePeriod = new(int64)
		}
		c.found.begun.Store(true)
	}
	c.waiting = append(c.waiting, c.found)
	return nil
}

// underWay returns the change that the journal says is under way, unless it is over.
func (c *Client) underWay(ctx context.Context) (*entry, error) {
	e, err := c.load(ctx)
	if e == nil || err != nil {
		return nil, err
	}
	pending, err := c.slot(ctx, Pending)
	if err != nil || holds(pending, e.Request.NewKey) {
		return e, err
	}
	// It was promoted, or removed: then the request is of no use.
	return nil, c.save(ctx, nil)
}

func holds(key crypto.Signer, public events.PublicKey) bool {
	if key == nil {
		return false
	}
	have, err := events.PublicKeyOf(key)
	return err == nil && have == public
}

// use signs with a key from now on, and ends a wait.
func (c *Client) use(key crypto.Signer) {
	next := &signing{key: key}
	if key != nil {
		next.public, _ = events.PublicKeyOf(key) // the store's keys were read by it before
	}
	if before := c.signing.Swap(next); before != nil && before.wait != nil {
		close(before.wait)
	}
	c.release = time.Time{}
}

// hold makes Sign wait until use or unhold, HoldAtMost from now at the latest.
func (c *Client) hold() {
	now := c.signing.Load()
	if now.wait == nil {
		c.release = time.Now().Add(c.cfg.HoldAtMost)
		c.signing.Store(&signing{key: now.key, public: now.public, wait: make(chan struct{}), until: c.release})
	}
}

func (c *Client) unhold() { c.use(c.signing.Load().key) }

func (c *Client) tell(e Event) {
	c.told.Lock()
	defer c.told.Unlock()
	switch last := c.lastFault.Load(); {
	case e.Kind != Retrying:
		c.lastFault.Store(nil)
	case last != nil && (*last).Error() == e.Err.Error():
		return // once is enough
	default:
		c.lastFault.Store(&e.Err)
	}
	e.At = time.Now()
	c.cfg.Notify(e)
}

// retrying reports an error after which the client tries again, unless it is closing.
func (c *Client) retrying(ctx context.Context, err error) {
	if ctx.Err() == nil {
		c.tell(Event{Kind: Retrying, Err: err})
	}
}
