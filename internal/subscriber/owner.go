package subscriber

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/streams"
)

// A durable belongs to one state: to one process of Auth, which keeps all keyrings in memory, or to
// one database of Billing, whose processes share it. If two states shared a durable, each would
// miss the events that the other got.
//
// A process asks on [ownerSubject] whether the durable is in use, and the process that has it
// answers. If that process is gone, the broker itself answers that there is no listener as soon as
// the connection ends, so a process that crashed can start again at once. The consumer's metadata
// says who has it. If two processes start at the same moment, or don't reach each other, the later
// one overwrites the metadata: the process that finds another name there has lost the durable, and
// stops.

// ErrInUse means that another process or another database has the durable.
var ErrInUse = errors.New("the durable is in use")

// The entries in a consumer's metadata that say whose it is.
const (
	metaInstance = streams.InstanceMetadata
	metaProcess  = "omi-process"  // the process that has it, if it is for one process alone
	metaDatabase = "omi-database" // the id of the database that has the acknowledged events
)

const (
	ownerSubject  = "omi.v1.instance." // followed by the consumer's name
	ownerWithin   = 2 * time.Second
	otherOwnerFor = time.Second / 2
)

// ownerWaits are the waits for an answer. A process that is there answers within milliseconds. The
// first question may go to a process that was killed just then. A process that hangs, or whose host
// is gone, holds its durable until the broker gives up its connection.
func ownerWaits() []time.Duration {
	return []time.Duration{200 * time.Millisecond, time.Second, 4 * time.Second}
}

// owner is what a process tells others about itself.
type owner struct {
	ID    string `json:"id"`
	Host  string `json:"host"`
	PID   int    `json:"pid"`
	Since int64  `json:"since"` // seconds since the Unix epoch
	// Same says whether it has the same database as the process that asks, whose mark it finds
	// there.
	Same bool `json:"same"`
}

func newOwner(since int64) owner {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return owner{ID: rand.Text(), Host: host, PID: os.Getpid(), Since: since}
}

// String is for people: errors and the consumer's metadata have it. It is unique.
func (h owner) String() string {
	return fmt.Sprintf("process %d on host %s, started at %s (%s)", h.PID, h.Host, time.Unix(h.Since, 0).UTC().Format(time.RFC3339), h.ID)
}

// alone says whether the durable is for this process alone.
func (s *Subscriber) alone() bool { return s.cfg.Instance != "" }

// metadata is what says that the durable is ours.
func (s *Subscriber) metadata() map[string]string {
	own := map[string]string{metaDatabase: s.database}
	if s.alone() {
		own[metaInstance], own[metaProcess] = s.cfg.Instance, s.self.String()
	}
	return own
}

// foreign says whose the durable is, if it isn't ours.
func (s *Subscriber) foreign(have map[string]string) (whose string, is bool) {
	if s.alone() {
		process := have[metaProcess]
		return process, process != "" && process != s.self.String()
	}
	return "a process with another database (" + have[metaDatabase] + ")", s.otherDatabase(have)
}

// otherDatabase says whether another database has the events that were acknowledged.
func (s *Subscriber) otherDatabase(have map[string]string) bool {
	return have[metaDatabase] != "" && have[metaDatabase] != s.database
}

// otherOwner is since when the metadata of our durable has had another name.
type otherOwner struct {
	mu    sync.Mutex
	since time.Time
}

// errOtherOwner may become [ErrInUse].
var errOtherOwner = errors.New("the durable seems to be in use by another process")

// stillOurs fails once another process has our durable. In a cluster, a new leader may repeat an
// old state, so it must say so for a while.
func (s *Subscriber) stillOurs(have map[string]string) error {
	whose, is := s.foreign(have)
	s.otherOwner.mu.Lock()
	defer s.otherOwner.mu.Unlock()
	switch {
	case !is:
		s.otherOwner.since = time.Time{}
		return nil
	case s.otherOwner.since.IsZero():
		s.otherOwner.since = time.Now()
		return errOtherOwner
	case time.Since(s.otherOwner.since) < otherOwnerFor:
		return errOtherOwner
	}
	return s.inUse(whose)
}

// withMetadata adds our entries to those of others.
func (s *Subscriber) withMetadata(have map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, have)
	maps.Copy(all, s.metadata())
	return all
}

// Acquire makes sure that the durable is free, and returns [ErrInUse] otherwise. A process calls it
// before it answers anything, because its state may lack events that another process got. Hold
// waits for a broker or a database that is unavailable, until ctx ends.
func (s *Subscriber) Acquire(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = ownerWithin
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := s.acquire(ctx)
		if errors.Is(err, ErrInUse) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, _ time.Duration) {
		s.cfg.Log.WarnContext(ctx, "waiting to ask whether the durable is in use", "durable", s.cfg.Durable, "error", err)
	}))
	return err
}

// acquire makes sure that the durable is free, and answers other processes from then on. It does
// nothing if the durable is ours already.
func (s *Subscriber) acquire(ctx context.Context) error {
	if s.replies != nil {
		return nil
	}
	if err := s.identify(ctx); err != nil {
		return err
	}
	if err := s.askOwner(ctx); err != nil {
		return err
	}
	var err error
	s.replies, err = s.cfg.JetStream.Conn().Subscribe(ownerSubject+s.cfg.Durable, s.replyToOther)
	if err != nil {
		return fmt.Errorf("answer others who ask for the durable: %w", err)
	}
	return nil
}

// identify reads the database's id once. After that, code that asks the broker about an open
// durable can read it without a lock.
func (s *Subscriber) identify(ctx context.Context) (err error) {
	if s.database == "" {
		s.database, err = s.cfg.Store.ID(ctx)
	}
	return err
}

// release ends the answers.
func (s *Subscriber) release() {
	if s.replies != nil {
		_ = s.replies.Unsubscribe() // fails only if the connection is gone
		s.replies = nil
	}
}

// askOwner asks the process that has the durable about itself. The durable is free only if the
// broker says that there is no listener. For processes that share a durable, an answer from a
// process with the same database is as good.
func (s *Subscriber) askOwner(ctx context.Context) error {
	question := s.self
	if !s.alone() {
		wipe, err := s.cfg.Store.Mark(ctx, question.ID)
		if err != nil {
			return err
		}
		defer wipe()
	}
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("ask for the durable: %w", err)
	}
	nc := s.cfg.JetStream.Conn()
	for _, within := range ownerWaits() {
		msg, err := s.request(ctx, nc, body, within)
		if !errors.Is(err, context.DeadlineExceeded) {
			return s.readReply(msg, err)
		}
		if err := s.listens(ctx, nc); err != nil {
			return fmt.Errorf("ask for the durable: %w", err)
		}
	}
	return s.inUse("a process that does not answer: it may hang, or its host may be gone, and the broker has not given its connection up yet")
}

func (s *Subscriber) request(ctx context.Context, nc *nats.Conn, body []byte, within time.Duration) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return nc.RequestWithContext(ctx, ownerSubject+s.cfg.Durable, body)
}

// listens fails if the question may not have got through the broker: then a missing answer means
// nothing.
func (s *Subscriber) listens(ctx context.Context, nc *nats.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, ownerWithin)
	defer cancel()
	if err := nc.FlushWithContext(ctx); err != nil {
		return err
	}
	if err := nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), ownerSubject) {
		return err
	}
	return nil
}

// readReply reads the answer of the process that has the durable.
func (s *Subscriber) readReply(msg *nats.Msg, err error) error {
	if errors.Is(err, nats.ErrNoResponders) {
		return nil
	}
	var have owner
	if err == nil {
		err = json.Unmarshal(msg.Data, &have)
	}
	if err != nil {
		return fmt.Errorf("ask for the durable: %w", err)
	}
	if have.ID == "" {
		return errors.New("the process that has the durable can't tell now which database it has")
	}
	if !s.alone() && have.Same {
		return nil
	}
	if s.alone() {
		return s.inUse(have.String())
	}
	return s.inUse(have.String() + ", which has another database")
}

// inUse is the error that says who has the durable.
func (s *Subscriber) inUse(whose string) error {
	advice := "Give this process another --instance, or stop that one"
	if !s.alone() {
		advice = "Give both the same --database-url, or this one another --durable, or stop that one"
	}
	return fmt.Errorf("%w: %s belongs to %s. %s", ErrInUse, s.cfg.Durable, printable.Text(whose), advice)
}

// replyToOther tells another process who we are. If we can't tell, an answer without an id makes it
// ask again.
func (s *Subscriber) replyToOther(msg *nats.Msg) {
	var asks owner
	if json.Unmarshal(msg.Data, &asks) != nil || asks.ID == "" || asks.ID == s.self.ID {
		return
	}
	own := s.self
	if !s.alone() {
		ctx, cancel := context.WithTimeout(context.Background(), ownerWithin)
		defer cancel()
		var err error
		if own.Same, err = s.cfg.Store.HasMark(ctx, asks.ID); err != nil {
			s.cfg.Log.Warn("another process asks whether it has the same database", "durable", s.cfg.Durable, "error", err)
			own = owner{}
		}
	}
	body, err := json.Marshal(own)
	if err == nil {
		err = msg.Respond(body)
	}
	if err != nil {
		s.cfg.Log.Warn("answer another process that asks for the durable", "durable", s.cfg.Durable, "error", err)
	}
}

// handOver is for a process that has lost its durable to another one, which lacks the events that
// this process got meanwhile. It deletes the durable: a new one delivers all events to the other
// process.
func (s *Subscriber) handOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ownerWithin)
	defer cancel()
	return s.deleteDurable(ctx)
}
