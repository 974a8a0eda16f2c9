package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const (
	faultsAtOnce = 2
	mostCalm     = 500 * time.Millisecond // between two faults
	shortFault   = 100 * time.Millisecond
	longFault    = time.Second
	longPause    = 6 * time.Second // longer than the broker waits for an acknowledgement
	mostDelay    = 120 * time.Millisecond
	mostStep     = 5 * time.Minute  // of a clock
	enough       = 30               // answers between two faults that don't overlap
	mostHeld     = 20 * time.Second // or this long: an election of the broker takes up to 9 s
)

// errBusy means that everything which the fault could strike has a fault already.
var errBusy = errors.New("everything that it could meet has a fault")

// fault is one kind. Its begin breaks something that no other fault holds now, says what, and
// returns how it is fixed.
type fault struct {
	name    string
	missing string // why it is not possible here; empty: it is
	longest time.Duration
	begin   func() (what string, mend func() error, err error)
}

// havoc breaks things, and repairs them again.
type havoc struct {
	*stand
	dice    *rand.Rand
	answers *atomic.Int64

	mu    sync.Mutex
	busy  map[string]bool
	count map[string]int
	errs  []error
}

func newHavoc(s *stand, dice *rand.Rand, answers *atomic.Int64) *havoc {
	return &havoc{stand: s, dice: dice, answers: answers, busy: map[string]bool{}, count: map[string]int{}}
}

func (h *havoc) faults() []fault {
	return []fault{
		{"kill -9 of a process", "", longFault, h.kill},
		{"SIGSTOP of a process", noPause, longPause, h.stop},
		{"clock step of a registry", "", longPause, h.stepClock},
		{"full disk of a subscriber", noFullDisk, longFault, h.fill},
		h.ofServer(crashOfServer, longFault),
		h.ofServer(restartOfServer, longFault),
		h.ofServer(lossOfQuorum, longPause),
		{"kill -9 of a broker node", "", longFault, func() (string, func() error, error) { return h.killNode(h.anyNode()) }},
		{"kill -9 of a stream's leader", "", longFault, func() (string, func() error, error) { return h.killNode(h.anyLeader()) }},
		{"SIGSTOP of a broker node", noPause, longPause, h.stopNode},
		{"cut between broker nodes", "", longPause, h.isolate},
		{"cut connection", "", longFault, func() (string, func() error, error) { return h.spoil((*testenv.Proxy).Cut) }},
		{"black hole", "", longPause, func() (string, func() error, error) { return h.spoil((*testenv.Proxy).Stall) }},
		{"slow connection", "", longPause, func() (string, func() error, error) {
			delay := h.upTo(mostDelay)
			return h.spoil(func(p *testenv.Proxy) { p.Slow(delay) })
		}},
	}
}

// run makes one fault of each kind, in an order of the dice, again and again until ctx ends. Then
// everything is fixed.
func (h *havoc) run(ctx context.Context) error {
	var mending sync.WaitGroup
	slots := make(chan struct{}, faultsAtOnce)
	for ctx.Err() == nil {
		kinds := h.faults()
		h.dice.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		for _, f := range kinds {
			// The dice are thrown whether or not the fault can be made, so that a seed stands for
			// the same faults.
			lasts, calm, overlaps := h.upTo(f.longest), h.upTo(mostCalm), h.dice.IntN(2) == 0
			if f.missing != "" || ctx.Err() != nil {
				continue
			}
			slots <- struct{}{}
			what, mend, err := f.begin()
			if err != nil {
				<-slots
				h.failed(f, what, err)
				if !errors.Is(err, errBusy) {
					h.release(what)
				}
				continue
			}
			began := time.Now()
			h.count[f.name]++
			mended := make(chan struct{})
			mending.Go(func() {
				defer close(mended)
				pause(ctx, lasts)
				if err := mend(); err != nil {
					h.failed(f, what, err)
				}
				lasted := time.Since(began).Round(time.Millisecond)
				h.t.Logf("%s  %-29s %s, %v", began.Format("15:04:05.000"), f.name, what, lasted)
				h.release(what)
				<-slots
			})
			if !overlaps {
				<-mended
				h.recover(ctx)
			}
			pause(ctx, calm)
		}
	}
	mending.Wait()
	return errors.Join(h.errs...)
}

// recover waits until work goes on: faults that come faster than a broker elects its leaders would
// show nothing.
func (h *havoc) recover(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, mostHeld)
	defer cancel()
	for goal := h.answers.Load() + enough; h.answers.Load() < goal && ctx.Err() == nil; {
		pause(ctx, pollEach)
	}
}

func (h *havoc) failed(f fault, what string, err error) {
	if errors.Is(err, errBusy) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errs = append(h.errs, fmt.Errorf("%s: %s: %w", f.name, what, err))
}

func (h *havoc) upTo(most time.Duration) time.Duration {
	return shortFault + time.Duration(h.dice.Int64N(int64(most-shortFault)))
}

// take chooses an element that has no fault yet.
func take[T any](h *havoc, from []T, name func(T) string) (T, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	order := h.dice.Perm(len(from))
	for _, i := range order {
		if what := name(from[i]); !h.busy[what] {
			h.busy[what] = true
			return from[i], what, nil
		}
	}
	return *new(T), "", errBusy
}

func (h *havoc) release(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.busy, what)
}

func nameOf(p *party) string    { return p.name }
func nameOfNode(n *node) string { return n.name }

func (h *havoc) kill() (string, func() error, error) {
	p, what, err := take(h, h.parties(), nameOf)
	if err != nil {
		return what, nil, err
	}
	return what, p.start, p.kill9()
}

func (h *havoc) stop() (string, func() error, error) {
	p, what, err := take(h, h.parties(), nameOf)
	if err != nil {
		return what, nil, err
	}
	return what, p.resume, p.pause()
}

func (h *havoc) stepClock() (string, func() error, error) {
	step := time.Duration(h.dice.Int64N(int64(2*mostStep))) - mostStep
	p, what, err := take(h, h.registries, func(p *party) string { return p.name + "'s clock" })
	if err != nil {
		return what, nil, err
	}
	return what, func() error { return p.moveClock("0s") }, p.moveClock(step.Round(time.Second).String())
}

// fill takes a subscriber with a file of its own: its database can't grow.
func (h *havoc) fill() (string, func() error, error) {
	onDisk := slices.DeleteFunc(slices.Concat(h.auths, h.billings), func(p *party) bool { return p.file() == "" })
	p, what, err := take(h, onDisk, nameOf)
	if err != nil {
		return what, nil, err
	}
	size := uint64(0)
	if info, err := os.Stat(p.file() + "-wal"); err == nil {
		size = uint64(info.Size())
	}
	mend, err := p.fillDisk(size)
	return what, mend, err
}

// ofServer is a fault of the databases' server. It has one at a time.
func (h *havoc) ofServer(name string, longest time.Duration) fault {
	f := fault{name: name, longest: longest}
	if h.server == nil {
		f.missing = "SQLite has no server"
		return f
	}
	end := h.server.ends()[name]
	if end == nil {
		f.missing = "one server has none"
	}
	f.begin = func() (string, func() error, error) {
		_, what, err := take(h, []sqlServer{h.server}, func(sqlServer) string { return "the database" })
		if err != nil {
			return what, nil, err
		}
		start, err := end(h.dice)
		return what, start, err
	}
	return f
}

func (h *havoc) anyNode() []*node { return h.cluster.nodes }

func (h *havoc) anyLeader() []*node {
	streams := []string{streams.Requests, streams.Invalidations, streams.Receipts}
	return []*node{h.cluster.leader(streams[h.dice.IntN(len(streams))], h.dice)}
}

func (h *havoc) killNode(from []*node) (string, func() error, error) {
	n, what, err := take(h, from, nameOfNode)
	if err != nil {
		return what, nil, err
	}
	return what, func() error { return errors.Join(n.start(), n.up()) }, n.kill9()
}

func (h *havoc) stopNode() (string, func() error, error) {
	n, what, err := take(h, h.cluster.nodes, nameOfNode)
	if err != nil {
		return what, nil, err
	}
	return what, n.resume, n.pause()
}

// isolate cuts one node off from the others, or lets what they say vanish; its clients still reach
// it.
func (h *havoc) isolate() (string, func() error, error) {
	vanishes := h.dice.IntN(2) == 0
	n, what, err := take(h, h.cluster.nodes, nameOfNode)
	if err != nil {
		return what, nil, err
	}
	for _, way := range n.ways {
		if vanishes {
			way.Stall()
		} else {
			way.Cut()
		}
	}
	return what, func() error {
		for _, way := range n.ways {
			way.Restore()
		}
		return nil
	}, nil
}

// spoil puts the same fault on one of a party's ways, or on all of them.
func (h *havoc) spoil(how func(*testenv.Proxy)) (string, func() error, error) {
	all, which := h.dice.IntN(2) == 0, h.dice.IntN(1<<16)
	p, what, err := take(h, append(h.parties(), h.services), func(p *party) string {
		if p.daemon == nil {
			return "the ways of the services"
		}
		return "the ways of " + p.name
	})
	if err != nil {
		return what, nil, err
	}
	ways := p.ways
	if !all {
		ways = ways[which%len(ways):][:1]
	}
	for _, way := range ways {
		how(way)
	}
	return what, func() error {
		for _, way := range ways {
			way.Restore()
		}
		return nil
	}, nil
}

// skipped logs which faults are not possible here.
func (h *havoc) skipped(t *testing.T) {
	for _, f := range h.faults() {
		if f.missing != "" {
			t.Logf("no %s on %s: %s", f.name, runtime.GOOS, f.missing)
		}
	}
}

// table lists how often each kind was made.
func (h *havoc) table() string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h.count)) {
		fmt.Fprintf(&text, "  %-30s %d\n", name, h.count[name])
	}
	return text.String()
}
