package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/streams"
)

// Errors of a registry whose database may lack changes that it announced.
var (
	// ErrComparing means that the database is being compared with the stream of events, and nothing
	// is served until that is done.
	ErrComparing = errors.New("the registry is comparing its database with the stream of events")
	// ErrBehind means that the database lacks the last changes of a service: it was restored from
	// an older backup.
	ErrBehind = errors.New("the registry's database lacks this service's last change")
)

const (
	// lookEvery is how often the position in the database is read without a request.
	lookEvery    = time.Second
	remindEvery  = 10 * time.Minute // how often the log says that services are still behind
	comparePause = 2 * time.Second  // the longest between two tries of a comparison that fails
)

// RecoverHint says how changes that the database lacks are brought back.
const RecoverHint = "run `omi-registry recover` with this registry's --database-url, --nats-url and --signing-key"

// need is what the history of a service must contain before the service is served.
type need struct {
	sequence int64
	place    uint64             // in the stream, of the first missing event
	signer   events.PublicKey   // of that event
	keys     []events.PublicKey // that the missing events registered
}

// fence is the restore guard. It keeps a database that was restored from an older backup from
// issuing a sequence twice. The stream of events shows what was issued: an event that is in the
// stream but not in the history was lost.
//
//	             ┌── the database is older than it was, or lost rows ──┐
//	             ▼                                                     │
//	not compared ──▶ compare stream and history ──▶ compared ──────────┘
//	nothing is served                               services that are behind are on hold
//
// Until every event is in the history again, the position in the database stays below the first
// missing event, so that a replica that starts later, or runs at the same time, finds it too.
type fence struct {
	store *Store
	js    jetstream.JetStream
	trust events.Trust
	log   *slog.Logger
	woken chan struct{}
	short int // looks in a row that found fewer events than the database has seen

	mu       sync.Mutex // not held while the database or the broker is asked
	compared bool
	doubts   int             // the epoch: how often there was reason to compare
	era      int64           // the era of the database sessions when it was compared
	seen     ledger.Position // the position of the database; it must never be found older
	behind   map[events.Target]need
	lost     map[events.PublicKey]struct{} // keys that missing events registered
	reminded time.Time
}

func newFence(cfg Config, js jetstream.JetStream) (*fence, error) {
	trust, err := events.NewTrustUntil(cfg.Policy.Origin, append([]events.TrustedKey{{PublicKey: cfg.Key.Public()}}, cfg.Trust...)...)
	if err != nil {
		return nil, fmt.Errorf("trust the registry's own keys: %w", err)
	}
	f := &fence{store: cfg.Store, js: js, trust: trust, log: cfg.Log, woken: make(chan struct{}, 1)}
	cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_services_behind",
		Help: "Services on hold because the database, restored from an older backup, lacks their last changes; omi-registry recover restores them.",
	}, func() float64 { return float64(f.OnHold()) }))
	return f, nil
}

// Compare compares the database with the stream. It tries until it succeeds or ctx ends.
func (f *fence) Compare(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = comparePause
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		return struct{}{}, f.CompareOnce(ctx)
	}, backoff.WithMaxElapsedTime(0), backoff.WithBackOff(pause), backoff.WithNotify(func(err error, next time.Duration) {
		f.log.Warn("comparing the database with the stream of events failed, trying again", "error", err, "next_try", next.String())
	}))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (f *fence) CompareOnce(ctx context.Context) error {
	f.mu.Lock()
	doubts, era := f.doubts, f.store.db.Era()
	f.mu.Unlock()
	began, _, err := f.store.ledger.Position(ctx)
	if err != nil {
		return err
	}
	stream, err := invalidations(ctx, f.js)
	if err != nil {
		return err
	}
	info := stream.CachedInfo()
	created, last := info.Created.UnixNano(), info.State.LastSeq
	v := newFindings()
	from := f.startOf(ctx, began, created, last)
	err = comparison{store: f.store, trust: f.trust, log: f.log, each: v.add}.run(ctx, stream, from)
	if err != nil {
		return err
	}
	v.conclude()
	found := ledger.Position{Created: created, Place: last}
	if v.first > 0 {
		found.Place = v.first - 1
	}
	back := v.first > 0 || last < began.Place
	if found, err = f.store.ledger.SetPosition(ctx, began, found, back); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doubts != doubts {
		return ledger.ErrMoved
	}
	f.compared, f.era, f.seen, f.behind, f.lost, f.reminded = true, era, found, v.behind, v.lost, time.Now()
	v.tell(ctx, f.log)
	return nil
}

// startOf returns the first place in the stream that the database may lack.
func (f *fence) startOf(ctx context.Context, row ledger.Position, created int64, last uint64) uint64 {
	f.mu.Lock()
	seen := f.seen
	f.mu.Unlock()
	switch {
	case row == ledger.Position{}:
		return 1
	case row.Created != created:
		f.log.WarnContext(ctx, "the stream of events was created again: all of it is compared with the database. "+
			"Subscribers that start from nothing know of a service only what the new stream holds", "stream", streams.Invalidations)
		return 1
	case last < row.Place:
		f.log.WarnContext(ctx, "the stream of events has lost its last messages: all of it is compared with the database. "+
			"Subscribers that had not read them know of these changes only from the registry's history",
			"stream", streams.Invalidations, "last", last, "expected", row.Place)
		return 1
	case seen.Created == created:
		return min(row.Place, seen.Place) + 1 // a replica that knew less may have changed the row
	}
	return row.Place + 1
}

// Run looks after the fence until ctx ends.
func (f *fence) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.woken:
		case <-tick.C:
		}
		if err := f.Look(ctx); err != nil && ctx.Err() == nil {
			f.log.Warn("looking at the position in the stream failed, trying again", "error", err)
		}
	}
}

// Look compares again if the database became older, and takes services off hold whose changes are
// there again.
func (f *fence) Look(ctx context.Context) error {
	if err := f.Check(ctx); err != nil && !errors.Is(err, ErrComparing) {
		return err
	}
	f.mu.Lock()
	compared, targets := f.compared, make([]events.Target, 0, len(f.behind))
	for t := range f.behind {
		targets = append(targets, t)
	}
	f.mu.Unlock()
	if !compared {
		return f.Compare(ctx)
	}
	if len(targets) == 0 {
		return nil
	}
	services, err := f.store.ledger.Services(ctx, targets[:min(len(targets), MaxBatch)]) // the rest another time
	if err != nil {
		return err
	}
	for t, s := range services {
		if s != nil {
			f.mayServe(t, s.Sequence)
		}
	}
	f.remind()
	return nil
}

// Epoch returns the epoch, and whether the database is complete: it was compared and lacks nothing.
func (f *fence) Epoch() (doubts int, complete bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doubts, f.compared && len(f.behind) == 0
}

// Same returns [ErrComparing] if the epoch has changed: the database was compared again since, so
// what was read before may come from another one.
func (f *fence) Same(ctx context.Context, doubts int) error {
	if err := f.Check(ctx); err != nil {
		return err
	}
	if now, _ := f.Epoch(); now != doubts {
		return ErrComparing
	}
	return nil
}

// Check reads the position, and returns [ErrComparing] if the database may be older than it was. A
// caller that decides on what it read calls check after it has read.
func (f *fence) Check(ctx context.Context) error {
	f.mu.Lock()
	compared, seen, era := f.compared, f.seen, f.era
	f.mu.Unlock()
	if !compared {
		return ErrComparing
	}
	now, _, err := f.store.ledger.Position(ctx)
	if err != nil {
		f.doubt(ctx, err)
		return err
	}
	if f.store.db.Era() != era {
		f.elsewhere()
		return ErrComparing
	}
	if now.OlderThan(seen) {
		f.Suspect("the position in the stream went back")
		return ErrComparing
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.compared && !now.OlderThan(f.seen) {
		f.seen = now
	}
	return nil
}

// Position returns the position that was seen last; zero: nothing is compared yet.
func (f *fence) Position() ledger.Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.compared {
		return ledger.Position{}
	}
	return f.seen
}

// Compared reports whether anything may be served.
func (f *fence) Compared() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.compared
}

// OnHold returns how many services are on hold.
func (f *fence) OnHold() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.behind)
}

// mayServe reports whether a service may be served that has this sequence in the database: no newer
// one is known.
func (f *fence) mayServe(t events.Target, sequence int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reached(t, sequence)
}

// reached is mayServe for callers that hold the lock.
func (f *fence) reached(t events.Target, sequence int64) bool {
	n, ok := f.behind[t]
	if !ok {
		return true
	}
	if sequence < n.sequence {
		return false
	}
	delete(f.behind, t)
	for _, key := range n.keys {
		delete(f.lost, key)
	}
	f.log.Info("the database has the service's last change again; the service is served", "service", t.String(), "sequence", sequence, "still_behind", len(f.behind))
	return true
}

// remind logs now and then that services are on hold.
func (f *fence) remind() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.behind) == 0 || time.Since(f.reminded) < remindEvery {
		return
	}
	f.reminded = time.Now()
	f.log.Error("services are on hold because the database lacks their last changes", "services", len(f.behind), "do", RecoverHint)
}

// Admit takes the requests of services on hold out of a batch that was loaded.
func (f *fence) Admit(ctx context.Context, st *decision.State, todo []decision.Incoming) (admitted, held []decision.Incoming, err error) {
	if err := f.Check(ctx); err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doubts != st.Epoch { // under the lock, because what was read takes services off hold
		return nil, nil, ErrComparing
	}
	for _, in := range todo {
		if _, lost := f.lost[in.Request.NewKey]; lost {
			st.TakenKeys[in.Request.NewKey] = true // it was registered, and will be again
		}
	}
	if len(f.behind) == 0 {
		return todo, nil, nil
	}
	for _, in := range todo {
		if in.Refusal == nil && !f.reached(in.Request.Target, st.SequenceOf(in.Request.Target)) {
			held = append(held, in)
		} else {
			admitted = append(admitted, in)
		}
	}
	return admitted, held, nil
}

// Answers returns [ErrComparing] or [ErrBehind] if the database may know less of a service than was
// announced.
func (f *fence) Answers(t events.Target, sequence int64) error {
	f.mu.Lock()
	compared := f.compared
	f.mu.Unlock()
	if !compared {
		return ErrComparing
	}
	if !f.mayServe(t, sequence) {
		return ErrBehind
	}
	return nil
}

// AnswersNoKey returns why the registry can't say that a key was never registered; nil: it can.
func (f *fence) AnswersNoKey(key events.PublicKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.compared {
		return ErrComparing
	}
	if _, lost := f.lost[key]; lost {
		return ErrBehind
	}
	return nil
}

// MoveFrom implements [outbox.Guard].
func (f *fence) MoveFrom() (from ledger.Position, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen, f.compared && len(f.behind) == 0
}

// Moved implements [outbox.Guard].
func (f *fence) Moved(ctx context.Context, p ledger.Position, err error) {
	switch {
	case errors.Is(err, ledger.ErrOlder):
		f.Suspect("messages to be published are gone from the outbox, or the position went back")
		return
	case err != nil:
		f.doubt(ctx, err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.compared && !p.OlderThan(f.seen) {
		f.seen = p
	}
}
