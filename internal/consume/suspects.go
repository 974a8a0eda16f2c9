package consume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// A suspect is a message that failed alone, or one that follows such a message, see [Config.About].
// Either it is at fault, or something is unavailable that all messages need. Other messages show
// which of the two:
//
//  - Nothing has passed since (an outage, or an idle stream): suspects lead every batch, in the
//    stream's order. So after an outage, everything is handled as if there had been none. While
//    nothing at all passes, no new message is taken for the length of a pause, as with any batch
//    that fails.
//  - A witness has passed, see [Message.Witness], and the suspect fails after it: the suspect is
//    blamed. From now on it is tried by itself, and holds up no other message. When it has been
//    blamed often enough, each time with a new witness in between, it is set aside.
//
// So the order of one service's messages is kept through an outage, but later messages overtake a
// message that is blamed.
//
// There are at most as many suspects as a batch has messages. Beyond that, no new message is taken
// as long as all their errors say that something is unavailable. Otherwise all suspects may be
// poison, and no other message is left that could show it. So new messages are then tried one after
// the other. A message that fails then has no place here, and goes back to the broker, which
// delivers it again.

const (
	// panicTries is how often a message may panic alone, without a pause, before it is set aside.
	panicTries = 3
	// faultsAtMost is how much blame a suspect takes before it is set aside: 5 errors, or 50 errors
	// which themselves say that something is unavailable. A disk that is full now and then lets
	// others pass in between; it doesn't hit the same message 50 times.
	faultsAtMost       = 5 * blameOfError
	blameOfError       = 10
	blameOfUnavailable = 1
	// partAtOnce is about the square root of the largest batch, so that a batch with a single bad
	// message takes the fewest tries.
	partAtOnce = 64
	// firstPause divides MaxBackoff: a suspect is tried again for the first time after that share
	// of it.
	firstPause = 8
)

// suspicion is the record of a suspect.
type suspicion struct {
	tries  int // how often it was tried alone
	blame  int
	proofs int // the worker's proofs when it failed last
	pause  *backoff.ExponentialBackOff
	due    time.Time // when it is tried next
}

// wake returns when the worker must act next on suspects: try one, take messages again, or tell the
// broker that the suspects are still ours.
func (w *worker[T]) wake() time.Time {
	next := w.told.Add(w.tellEvery)
	for _, m := range w.suspects {
		if due := w.due(m); due.Before(next) {
			next = due
		}
	}
	for _, t := range [...]time.Time{w.resume, w.probeAt} {
		if t.After(time.Now()) && t.Before(next) {
			next = t
		}
	}
	return next
}

// due returns when a suspect must be tried again.
func (w *worker[T]) due(m *Message[T]) time.Time {
	if m.suspicion.blame == 0 && m.suspicion.due.Before(w.resume) {
		return w.resume
	}
	return m.suspicion.due
}

// lead puts the suspects that have not been blamed yet in front of a batch. If the batch is empty,
// it does so only when the time of one of them has come.
func (w *worker[T]) lead(batch []*Message[T]) []*Message[T] {
	var doubtful []*Message[T]
	now, due := time.Now(), len(batch) > 0
	for _, m := range w.suspects {
		if m.suspicion.blame == 0 {
			doubtful = append(doubtful, m)
			due = due || !now.Before(w.due(m))
		}
	}
	if !due || len(doubtful) == 0 {
		return batch
	}
	slices.SortStableFunc(doubtful, func(a, b *Message[T]) int {
		return cmp.Compare(a.Sequence, b.Sequence)
	})
	return append(doubtful, batch...)
}

// tryBlamed tries the blamed suspects whose time has come, each alone.
func (w *worker[T]) tryBlamed(ctx, work context.Context) {
	for _, m := range slices.Clone(w.suspects) {
		if ctx.Err() != nil {
			return
		}
		if m.suspicion.blame > 0 && !time.Now().Before(w.due(m)) {
			_ = w.alone(work, m) // alone logs the outcome
		}
		w.tell(nil)
	}
}

// oneByOne finds out which messages of a batch fail. It tries a large batch in parts first, because
// thousands of transactions take long.
func (w *worker[T]) oneByOne(ctx, work context.Context, batch []*Message[T]) {
	var failures []error
	behind := followers[T]{w.cfg.About, map[string]bool{}}
	passed := 0
	for i := 0; i < len(batch); w.tell(batch[i:]) {
		if len(failures) > 0 && ctx.Err() != nil {
			returnAll(batch[i:])
			return
		}
		part := batch[i:min(i+partAtOnce, len(batch))]
		if i%partAtOnce == 0 && len(batch) > partAtOnce && !slices.ContainsFunc(part, behind.has) && w.try(work, part) == nil {
			w.passed(part)
			i, passed = i+len(part), passed+len(part)
			continue
		}
		m := batch[i]
		i++
		if behind.has(m) {
			w.suspect(m)
			continue
		}
		if err := w.alone(work, m); err != nil {
			failures = append(failures, err)
			behind.follow(m)
		} else {
			passed++
		}
	}
	if len(failures) == 0 {
		return
	}
	w.unavailable = !slices.ContainsFunc(failures, func(err error) bool { return !w.cfg.Unavailable(err) })
	if passed == 0 {
		w.resume = time.Now().Add(w.pause.NextBackOff())
	}
	w.cfg.Log.Warn("messages fail alone too, they will be tried again", "messages", len(failures), "of", len(batch),
		"suspects", len(w.suspects), "error", failures[0])
}

// followers finds the messages that come after one that failed alone and are about the same thing.
type followers[T any] struct {
	about func(*Message[T]) string // nil if order doesn't matter
	what  map[string]bool
}

func (f *followers[T]) follow(m *Message[T]) {
	if f.about != nil {
		f.what[f.about(m)] = true
	}
}

func (f *followers[T]) has(m *Message[T]) bool { return len(f.what) > 0 && f.what[f.about(m)] }

// suspect keeps a message to be tried again later.
func (w *worker[T]) suspect(m *Message[T]) {
	if m.suspicion == nil {
		m.suspicion = &suspicion{proofs: w.proofs, pause: w.cfg.newBackoff(w.cfg.MaxBackoff / firstPause)}
		w.suspects = append(w.suspects, m)
	}
	m.suspicion.due = time.Now().Add(m.suspicion.pause.NextBackOff())
}

// probe tries a message that can't become a suspect.
func (w *worker[T]) probe(ctx context.Context, m *Message[T]) {
	err := w.try(ctx, []*Message[T]{m})
	switch {
	case err == nil:
		w.passed([]*Message[T]{m})
	case !m.kept:
		w.probeAt = time.Now().Add(firstBackoff)
		w.acknowledged(m.NakWithDelay(w.cfg.MaxBackoff))
	}
}

// alone hands one message over by itself. If it returns an error, the message is a suspect from now
// on.
func (w *worker[T]) alone(ctx context.Context, m *Message[T]) error {
	tries := 0
	var err error
	for again := true; again; again = isPanic(err) && tries < panicTries {
		tries++
		if err = w.try(ctx, []*Message[T]{m}); err == nil {
			w.passed([]*Message[T]{m})
			return nil
		}
	}
	if m.kept {
		w.clear(m) // the handler has finished it, or it comes again
		return nil
	}
	w.suspect(m)
	m.suspicion.tries += tries
	if ctx.Err() == nil && w.atFault(m.suspicion, err) && w.setAside(ctx, m, err) {
		return nil
	}
	return err
}

// atFault blames a suspect for its failure if a witness has passed, and reports whether it has
// failed often enough.
func (w *worker[T]) atFault(s *suspicion, err error) bool {
	if w.proofs > s.proofs {
		s.proofs = w.proofs
		if w.cfg.Unavailable(err) {
			s.blame += blameOfUnavailable
		} else {
			s.blame += blameOfError
		}
	}
	return s.blame >= faultsAtMost || isPanic(err)
}

// setAside gives a message up, and reports whether that worked. Keeping it for an operator is the
// last piece of evidence: this fails while a database is unavailable.
func (w *worker[T]) setAside(ctx context.Context, m *Message[T], err error) bool {
	why := Fault{Reason: Fails, Detail: err.Error(), Tries: m.suspicion.tries}
	log := w.cfg.Log.With("subject", m.Subject, "tries", why.Tries, "error", err)
	if poison := (*panicError)(nil); errors.As(err, &poison) {
		why.Reason, why.Detail = Panics, fmt.Sprint(poison.value)
		log = log.With("stack", poison.stack)
	}
	if err := w.cfg.SetAside(ctx, m, why); err != nil {
		log.Warn("setting a message aside failed: it will be tried again", "set_aside_error", err)
		return false
	}
	log.Error("message set aside: it can't be handled", "reason", why.Reason)
	w.acknowledged(m.TermWithReason("set aside: " + why.Reason))
	w.clear(m)
	return true
}

// clear removes a message from the suspects.
func (w *worker[T]) clear(m *Message[T]) {
	m.suspicion = nil
	w.suspects = slices.DeleteFunc(w.suspects, func(other *Message[T]) bool { return other == m })
}
