package consume

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// triesTogether is how often a failing batch is tried as a whole before its messages are handed
	// over one by one.
	triesTogether = 5
	// tellsInWait is how often, within its wait for an acknowledgement, the broker is told that a
	// message is still ours.
	tellsInWait = 5
	defaultWait = 5 * time.Second // if the durable needs no acknowledgements
)

// worker hands over the messages that have arrived. It is one goroutine.
type worker struct {
	cfg     Config
	arrived <-chan *Message
	ended   <-chan struct{} // closed when no more will arrive

	here     map[uint64]struct{}         // sequences of batch and suspects; nil until needed
	suspects []*Message                  // at most cfg.Batch
	proofs   int                         // how many witnesses have passed
	pause    *backoff.ExponentialBackOff // while nothing passes
	resume   time.Time                   // no messages are taken before; nothing passes
	away     bool                        // all the last errors say that something is away
	probeAt  time.Time                   // no message is taken before, if all is full

	tellEvery time.Duration
	told      time.Time

	inHand int // messages of the batch that is being handled; 0 if there is none
}

func newWorker(cfg Config, arrived <-chan *Message, ended <-chan struct{}, ackWait time.Duration) *worker {
	if ackWait <= 0 {
		ackWait = defaultWait
	}
	return &worker{
		cfg: cfg, arrived: arrived, ended: ended, pause: cfg.newBackoff(firstBackoff), tellEvery: ackWait / tellsInWait,
	}
}

func (w *worker) run(ctx context.Context) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(w.cfg.Drain, cancel) })
	defer stop()
	defer w.cfg.InHand.done()
	batch := make([]*Message, 0, w.cfg.Batch)
	for {
		var ok bool
		if batch, ok = w.next(ctx, batch[:0]); !ok {
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
}

// next waits for one message and takes all that have arrived, or waits until suspects need
// attention.
func (w *worker) next(ctx context.Context, batch []*Message) ([]*Message, bool) {
	w.here = nil
	arrived, ended, wake := w.arrived, (<-chan struct{})(nil), (<-chan time.Time)(nil)
	if len(w.suspects) > 0 {
		timer := time.NewTimer(time.Until(w.wake()))
		defer timer.Stop()
		wake = timer.C
		if w.room() == 0 {
			arrived, ended = nil, w.ended
		}
	}
	select {
	case <-ctx.Done():
		return nil, false
	case <-ended:
		return nil, false
	case <-wake:
	case m, ok := <-arrived:
		if !ok {
			return nil, false
		}
		batch = w.add(batch, m)
	}
	for len(batch) < w.room() {
		select {
		case m, ok := <-w.arrived:
			if !ok {
				return batch, true
			}
			batch = w.add(batch, m)
		default:
			return batch, true
		}
	}
	return batch, true
}

// room returns how many messages may be taken in addition to the suspects.
func (w *worker) room() int {
	switch now := time.Now(); {
	case now.Before(w.resume):
		return 0
	case !w.full():
		return w.cfg.Batch - len(w.suspects)
	case w.away || now.Before(w.probeAt):
		return 0
	}
	return 1 // to be tried alone
}

// full reports whether there is no room for another suspect.
func (w *worker) full() bool { return len(w.suspects) >= w.cfg.Batch }

// add puts a message into the batch, unless it is a copy of one that is done, or of one in the
// batch or among the suspects.
func (w *worker) add(batch []*Message, m *Message) []*Message {
	switch {
	case m.repeated():
		w.settle(m.Ack())
		return batch
	case m.Meta.NumDelivered > 1 && w.isHere(batch, m):
		return batch
	}
	if w.here != nil {
		w.here[m.Meta.Sequence.Stream] = struct{}{}
	}
	return append(batch, m)
}

// isHere reports whether the message, or a copy of it, is in the batch or a suspect. After a
// restart it is called for thousands of messages.
func (w *worker) isHere(batch []*Message, m *Message) bool {
	if w.here == nil {
		w.here = map[uint64]struct{}{}
		for _, list := range [...][]*Message{w.suspects, batch} {
			for _, other := range list {
				w.here[other.Meta.Sequence.Stream] = struct{}{}
			}
		}
	}
	_, is := w.here[m.Meta.Sequence.Stream]
	return is
}

// handle finishes a batch: it acknowledges the messages; or gives them back, because a shutdown
// came first; or, if messages fail alone, too, keeps those as suspects and acknowledges the rest.
func (w *worker) handle(ctx, work context.Context, batch []*Message) {
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
func (w *worker) passed(batch []*Message) {
	proof := 0
	for _, m := range batch {
		if m.witness {
			proof = 1
		}
		if m.suspicion != nil {
			w.clear(m)
		}
		if !m.kept {
			w.settle(m.Ack())
		}
	}
	w.proofs += proof
	w.pause.Reset()
	w.resume, w.probeAt, w.away = time.Time{}, time.Time{}, false
}

// tell informs the broker, often enough, that messages which wait here are still ours, so that it
// sends no copies.
func (w *worker) tell(batch []*Message) {
	if time.Since(w.told) < w.tellEvery {
		return
	}
	w.told = time.Now()
	for _, list := range [...][]*Message{w.suspects, batch} {
		for _, m := range list {
			_ = m.InProgress()
		}
	}
}

// returnAll gives messages back to the broker, which delivers them to another process.
func returnAll(list []*Message) {
	for _, m := range list {
		if !m.kept {
			_ = m.Nak() // as in giveBack
		}
	}
}

// settle logs a failed acknowledgement. It loses nothing: the message comes again, and has no
// second effect.
func (w *worker) settle(err error) {
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

func (w *worker) try(ctx context.Context, batch []*Message) (err error) {
	for _, m := range batch {
		m.witness = false
	}
	w.cfg.InHand.begin(max(len(batch), w.inHand))
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v, string(debug.Stack())}
		}
		if err == nil || !w.cfg.Away(err) { // otherwise it continues to wait for what is away
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
