package restore

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/streams"
)

// Errors of a registry whose database may lack changes that it announced. The registry's package
// explains them.
var (
	ErrComparing = errors.New("the registry is comparing its database with the stream of events")
	ErrBehind    = errors.New("the registry's database lacks this service's last change")
)

const (
	// lookEvery is how often the position in the database is read without a request.
	lookEvery    = time.Second
	remindEvery  = 10 * time.Minute // how often the log says that services are still behind
	comparePause = 2 * time.Second  // the longest between two tries of a comparison that fails
	// servicesAtOnce is how many services are read together.
	servicesAtOnce = 2048
)

// RecoverHint says how changes that the database lacks are brought back.
const RecoverHint = "run `omi-registry recover` with this registry's --database-url, --nats-url and --signing-key"

// Sessions tells of the sessions with the database: *sqldb.DB does.
type Sessions interface {
	// Era changes when another server may have begun to answer.
	Era() int64
	// Disconnected reports whether an error means that the connection was lost.
	Disconnected(err error) bool
}

// Config configures a guard. All members are required, except that a guard that never compares
// needs no JetStream.
type Config struct {
	Ledger    *ledger.Ledger
	Sessions  Sessions
	JetStream jetstream.JetStream
	Trust     events.Trust // in the registry's own keys
	Log       *slog.Logger
	Metrics   prometheus.Registerer
}

// Guard is the restore guard. Its methods may be called concurrently.
type Guard struct {
	cfg   Config
	woken chan struct{}
	short int // looks in a row that found fewer events than the database has seen

	mu       sync.Mutex // not held while the database or the broker is asked
	compared bool
	epoch    int             // how often there was reason to compare
	era      int64           // the era of the database sessions when it was compared
	seen     ledger.Position // the position of the database; it must never be found older
	behind   map[events.Target]need
	missing  map[events.PublicKey]struct{} // keys that missing events registered
	reminded time.Time
}

// need is what the history of a service must contain before the service is served.
type need struct {
	sequence int64
	place    uint64             // in the stream, of the first missing event
	signer   events.PublicKey   // of that event
	keys     []events.PublicKey // that the missing events registered
}

// New returns a guard that has not compared yet: nothing is served.
func New(cfg Config) *Guard {
	g := &Guard{cfg: cfg, woken: make(chan struct{}, 1)}
	cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_registry_services_behind",
		Help: "Services on hold because the database, restored from an older backup, lacks their last changes; omi-registry recover restores them.",
	}, func() float64 { return float64(g.OnHold()) }))
	return g
}

// Compare compares the database with the stream. It tries until it succeeds or ctx ends.
func (g *Guard) Compare(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = comparePause
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		return struct{}{}, g.CompareOnce(ctx)
	}, backoff.WithMaxElapsedTime(0), backoff.WithBackOff(pause), backoff.WithNotify(func(err error, next time.Duration) {
		g.cfg.Log.Warn("comparing the database with the stream of events failed, trying again", "error", err, "next_try", next.String())
	}))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// CompareOnce is [Guard.Compare] with one try. It is the guard's story: from where the database
// last stood, it compares the stream with the history, writes down how far nothing is missing, and
// puts on hold the services that lack something.
func (g *Guard) CompareOnce(ctx context.Context) error {
	g.mu.Lock()
	epoch, era := g.epoch, g.cfg.Sessions.Era()
	g.mu.Unlock()

	began, _, err := g.cfg.Ledger.Position(ctx)
	if err != nil {
		return err
	}
	stream, err := invalidations(ctx, g.cfg.JetStream)
	if err != nil {
		return err
	}
	info := stream.CachedInfo()
	created, last := info.Created.UnixNano(), info.State.LastSeq

	r := newReport()
	from := g.startOf(ctx, began, created, last)
	err = comparison{ledger: g.cfg.Ledger, trust: g.cfg.Trust, log: g.cfg.Log, each: r.add}.run(ctx, stream, from)
	if err != nil {
		return err
	}
	r.conclude()

	found := ledger.Position{Created: created, Place: last}
	if r.first > 0 {
		found.Place = r.first - 1
	}
	back := r.first > 0 || last < began.Place
	if found, err = g.cfg.Ledger.SetPosition(ctx, began, found, back); err != nil {
		return err
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	if g.epoch != epoch {
		return ledger.ErrMoved
	}
	g.compared, g.era, g.seen, g.behind, g.missing, g.reminded = true, era, found, r.behind, r.missing, time.Now()
	r.tell(ctx, g.cfg.Log)
	return nil
}

// startOf returns the first place in the stream that the database may lack.
func (g *Guard) startOf(ctx context.Context, row ledger.Position, created int64, last uint64) uint64 {
	g.mu.Lock()
	seen := g.seen
	g.mu.Unlock()
	switch {
	case row == ledger.Position{}:
		return 1
	case row.Created != created:
		g.cfg.Log.WarnContext(ctx, "the stream of events was created again: all of it is compared with the database. "+
			"Subscribers that start from nothing know of a service only what the new stream holds", "stream", streams.Invalidations)
		return 1
	case last < row.Place:
		g.cfg.Log.WarnContext(ctx, "the stream of events has lost its last messages: all of it is compared with the database. "+
			"Subscribers that had not read them know of these changes only from the registry's history",
			"stream", streams.Invalidations, "last", last, "expected", row.Place)
		return 1
	case seen.Created == created:
		return min(row.Place, seen.Place) + 1 // a replica that knew less may have changed the row
	}
	return row.Place + 1
}

// Run looks after the guard until ctx ends.
func (g *Guard) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.woken:
		case <-tick.C:
		}
		if err := g.Look(ctx); err != nil && ctx.Err() == nil {
			g.cfg.Log.Warn("looking at the position in the stream failed, trying again", "error", err)
		}
	}
}

// Look compares again if the database became older, and takes services off hold whose changes are
// there again.
func (g *Guard) Look(ctx context.Context) error {
	if err := g.Check(ctx); err != nil && !errors.Is(err, ErrComparing) {
		return err
	}
	g.mu.Lock()
	compared, targets := g.compared, make([]events.Target, 0, len(g.behind))
	for t := range g.behind {
		targets = append(targets, t)
	}
	g.mu.Unlock()
	if !compared {
		return g.Compare(ctx)
	}
	if len(targets) == 0 {
		return nil
	}
	// The rest is looked up another time: maps have no order.
	services, err := g.cfg.Ledger.Services(ctx, targets[:min(len(targets), servicesAtOnce)])
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for t, s := range services {
		if s != nil {
			g.reached(t, s.Sequence)
		}
	}
	g.remind()
	return nil
}

// remind logs now and then that services are on hold. The caller holds the lock.
func (g *Guard) remind() {
	if len(g.behind) == 0 || time.Since(g.reminded) < remindEvery {
		return
	}
	g.reminded = time.Now()
	g.cfg.Log.Error("services are on hold because the database lacks their last changes", "services", len(g.behind), "do", RecoverHint)
}
