package consume

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v5"
	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// triesTogether is how often a failing batch is tried as a whole before its messages are handed
	// over one by one.
	triesTogether = 5
	// tellsInWait is how often, within its wait for an acknowledgement, the broker is told that a
	// message is still ours.
	tellsInWait  = 5
	defaultWait  = 5 * time.Second // if the durable needs no acknowledgements
	finishedKept = 8               // in batches: more than can wait here and in the source
)

// worker hands over the messages that have arrived. It is one goroutine.
type worker[T any] struct {
	cfg      Config[T]
	source   Source[T]
	finished *lru.Cache[uint64, struct{}] // messages that were finished lately, by their sequences

	here        map[uint64]struct{}         // sequences of batch and suspects; nil until needed
	suspects    []*Message[T]               // at most cfg.Batch
	proofs      int                         // how many witnesses have passed
	pause       *backoff.ExponentialBackOff // while nothing passes
	resume      time.Time                   // no messages are taken before; nothing passes
	unavailable bool                        // all the last errors say that something is unavailable
	probeAt     time.Time                   // no message is taken before, if all is full

	tellEvery time.Duration
	told      time.Time

	inHand int // messages of the batch that is being handled; 0 if there is none
}

func newWorker[T any](cfg Config[T], source Source[T]) *worker[T] {
	ackWait := source.AckWait()
	if ackWait <= 0 {
		ackWait = defaultWait
	}
	finished, err := lru.New[uint64, struct{}](finishedKept * cfg.Batch)
	if err != nil {
		panic("consume: " + err.Error()) // it refuses only sizes below 1
	}
	return &worker[T]{cfg: cfg, source: source, finished: finished, pause: cfg.newBackoff(firstBackoff), tellEvery: ackWait / tellsInWait}
}

// run works until ctx ends, or the source does. It returns the source's error.
func (w *worker[T]) run(ctx context.Context) (err error) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(w.cfg.Drain, cancel) })
	defer stop()
	defer w.cfg.InHand.done()
	batch := make([]*Message[T], 0, w.cfg.Batch)
	for ctx.Err() == nil {
		batch, err = w.next(ctx, batch[:0])
		if err != nil || len(batch) == 0 && ctx.Err() != nil {
			break
		}
		if len(batch) > 0 && w.full() {
			w.probe(work, batch[0])
			batch = batch[:0]
		}
		if batch = w.lead(batch); len(batch) > 0 {
			w.handle(ctx, work, batch)
		}
		w.tryBlamed(ctx, work)
		w.tell(nil)
		if len(w.suspects) == 0 {
			w.cfg.InHand.done()
		}
	}
	returnAll(w.suspects)
	return err
}

// next waits for messages, or until suspects need attention.
func (w *worker[T]) next(ctx context.Context, batch []*Message[T]) ([]*Message[T], error) {
	room := w.room()
	if len(w.suspects) > 0 || room == 0 {
		until, cancel := context.WithDeadline(ctx, w.wake())
		defer cancel()
		ctx = until
	}
	arrived, err := w.source.Next(ctx, batch, room)
	w.here = nil
	batch = arrived[:0]
	for _, m := range arrived {
		m.finished = w.finished
		batch = w.add(batch, m)
	}
	return batch, err
}

// room returns how many messages may be taken in addition to the suspects.
func (w *worker[T]) room() int {
	switch now := time.Now(); {
	case now.Before(w.resume):
		return 0
	case !w.full():
		return w.cfg.Batch - len(w.suspects)
	case w.unavailable || now.Before(w.probeAt):
		return 0
	}
	return 1 // to be tried alone
}

// full reports whether there is no room for another suspect.
func (w *worker[T]) full() bool { return len(w.suspects) >= w.cfg.Batch }

// add puts a message into the batch, unless it is a copy of one that is done, or of one in the
// batch or among the suspects.
func (w *worker[T]) add(batch []*Message[T], m *Message[T]) []*Message[T] {
	switch {
	case m.repeated():
		w.acknowledged(m.Ack())
		return batch
	case m.Delivered > 1 && w.isHere(batch, m):
		return batch
	}
	if w.here != nil {
		w.here[m.Sequence] = struct{}{}
	}
	return append(batch, m)
}

// isHere reports whether the message, or a copy of it, is in the batch or a suspect. After a
// restart it is called for thousands of messages.
func (w *worker[T]) isHere(batch []*Message[T], m *Message[T]) bool {
	if w.here == nil {
		w.here = map[uint64]struct{}{}
		for _, list := range [...][]*Message[T]{w.suspects, batch} {
			for _, other := range list {
				w.here[other.Sequence] = struct{}{}
			}
		}
	}
	_, is := w.here[m.Sequence]
	return is
}

// handle finishes a batch: it acknowledges the messages; or gives them back, because a shutdown
// came first; or, if messages fail alone, too, keeps those as suspects and acknowledges the rest.
func (w *worker[T]) handle(ctx, work context.Context, batch []*Message[T]) {
	w.inHand = len(batch)
	defer func() { w.inHand = 0 }()
	pause := w.cfg.newBackoff(firstBackoff)
	led := batch[0].suspicion != nil
	for tries := 1; !led || len(batch) > 1; tries++ {
		err := w.try(work, batch)
		if err == nil {
			w.passed(batch)
			return
		}
		if led || isPanic(err) || tries == triesTogether {
			w.cfg.Log.Warn("batch failed, handing its messages over one by one", "messages", len(batch), "error", err)
			break
		}
		w.cfg.Log.Warn("batch failed, trying again", "messages", len(batch), "error", err)
		if !wait(ctx, pause.NextBackOff()) {
			returnAll(batch)
			return
		}
		w.tell(batch)
	}
	w.oneByOne(ctx, work, batch)
}

// passed acknowledges messages that the handler has handled.
func (w *worker[T]) passed(batch []*Message[T]) {
	proof := 0
	for _, m := range batch {
		if m.witness {
			proof = 1
		}
		if m.suspicion != nil {
			w.clear(m)
		}
		if !m.kept {
			w.acknowledged(m.Ack())
		}
	}
	w.proofs += proof
	w.pause.Reset()
	w.resume, w.probeAt, w.unavailable = time.Time{}, time.Time{}, false
}

// tell informs the broker, often enough, that messages which wait here are still ours, so that it
// sends no copies.
func (w *worker[T]) tell(batch []*Message[T]) {
	if time.Since(w.told) < w.tellEvery {
		return
	}
	w.told = time.Now()
	for _, list := range [...][]*Message[T]{w.suspects, batch} {
		for _, m := range list {
			_ = m.InProgress()
		}
	}
}

// returnAll gives messages back to the broker, which delivers them to another process.
func returnAll[T any](list []*Message[T]) {
	for _, m := range list {
		if !m.kept {
			_ = m.Nak() // as in Iterator.Close
		}
	}
}

// acknowledged logs a failed acknowledgement. It loses nothing: the message comes again, and has no
// second effect.
func (w *worker[T]) acknowledged(err error) {
	if err != nil {
		w.cfg.Log.Debug("acknowledge", "error", err)
	}
}

type panicError struct {
	value any
	stack string
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

func isPanic(err error) bool {
	poison := (*panicError)(nil)
	return errors.As(err, &poison)
}

func (w *worker[T]) try(ctx context.Context, batch []*Message[T]) (err error) {
	for _, m := range batch {
		m.witness = false
	}
	w.cfg.InHand.begin(max(len(batch), w.inHand))
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v, string(debug.Stack())}
		}
		if err == nil || !w.cfg.Unavailable(err) { // otherwise it still waits
			w.cfg.InHand.done()
		}
	}()
	return w.cfg.Handle(ctx, batch)
}

// wait pauses, and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
