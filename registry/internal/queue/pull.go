package queue

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
)

// pull takes what the broker delivers, until the context or the broker's iterator ends.
func (s *source) pull() {
	defer close(s.pulled)
	defer s.iterator.Close()
	for {
		s.room()
		msg, err := s.iterator.Next()
		if err == nil {
			err = s.receive(msg)
		}
		if err != nil {
			s.end(err)
			return
		}
	}
}

// room waits until another message may wait here.
func (s *source) room() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.waiting+s.unsorted >= waitingAll && s.ctx.Err() == nil {
		s.changed.Wait()
	}
}

// end lets Next return, and gives back what waits. Giving back is best effort: the broker finds out
// anyway.
func (s *source) end(err error) {
	s.mu.Lock()
	s.err = err
	waiting := s.toSort
	s.toSort = nil
	for _, sq := range s.queues {
		waiting = append(waiting, sq.waiting...)
		sq.waiting = nil
	}
	s.queues, s.ready, s.waiting = map[events.Target]*serviceQueue{}, nil, 0
	s.here = map[uint64]*item{}
	s.changed.Broadcast()
	s.mu.Unlock()
	<-s.sorter
	for _, it := range waiting {
		_ = it.broker.NakWithDelay(0)
	}
}

// receive puts a message into its queue, unless it is garbage beyond the budget or must be sorted
// first.
func (s *source) receive(msg jetstream.Msg) error {
	it, err := newItem(s, msg)
	if err != nil {
		return err
	}
	if it.message.Delivery <= s.delivered {
		return errReplaced // it may be another stream, which counts from 1 again
	}
	s.delivered = it.message.Delivery
	target, most := it.target(), inHandEach
	if target.IsZero() {
		most = inHandGarbage
	}
	switch {
	case it.parsed() != nil && it.parsed().Request == nil:
		s.drop(it, Unanswerable)
		return nil
	case it.garbage() && !s.pay(it):
		return nil
	}
	if !s.sortFirst(it) {
		s.enqueue(it, target, most)
	}
	return nil
}

// enqueue puts a message into a queue, unless the queue is full.
func (s *source) enqueue(it *item, target events.Target, most int) {
	full, after := s.add(it, target, most)
	switch {
	case full && target.IsZero():
		s.drop(it, unanswered)
	case full:
		s.sentBack.Inc()
		_ = it.broker.NakWithDelay(after) // if this fails, it returns sooner
	}
}

// add puts a message into its queue. If the queue is full, it returns after which time the message
// may return.
func (s *source) add(it *item, target events.Target, most int) (full bool, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here[it.message.Sequence] != nil {
		return false, 0 // a copy came meanwhile
	}
	if s.err != nil { // the queue ended meanwhile
		_ = it.broker.NakWithDelay(0) // as in end
		return false, 0
	}
	sq := s.queues[target]
	if sq == nil {
		sq = &serviceQueue{target: target, most: most}
		s.queues[target] = sq
	}
	if len(sq.waiting) >= waitingEach {
		return true, s.returnAfter(time.Now())
	}
	it.queue, s.here[it.message.Sequence] = sq, it
	sq.waiting = append(sq.waiting, it)
	s.waiting++
	s.lineUp(sq)
	return false, 0
}

// returnAfter returns the delay for one more message that goes back. The caller holds s.mu.
func (s *source) returnAfter(now time.Time) time.Duration {
	if first := now.Add(returnFirst); s.returns.Before(first) {
		s.returns = first
	}
	s.returns = s.returns.Add(time.Second / returnRate)
	return s.returns.Truncate(returnEach).Sub(now)
}

// pay charges a message's answer to the budget for garbage, and reports whether that was possible.
// Otherwise the message gets no answer, and is acknowledged.
func (s *source) pay(it *item) bool {
	if it.message.Payload.Paid = s.budget.charge(); !it.message.Payload.Paid {
		_ = it.broker.Ack() // as in drop
	}
	return it.message.Payload.Paid
}

// drop acknowledges garbage that gets no answer.
func (s *source) drop(it *item, why string) {
	_ = it.broker.Ack() // if this fails, it is delivered again
	s.budget.drop(why)
}

// keep tells the broker in time that waiting messages and those in hand are still ours, and logs
// what was dropped.
func (s *source) keep() {
	ticker := time.NewTicker(extendEach)
	defer ticker.Stop()
	for {
		select {
		case <-s.pulled:
			return
		case now := <-ticker.C:
			for _, it := range s.due(now) {
				_ = it.InProgress() // it may have been finished just now
			}
			s.budget.tell(s.cfg.Log)
		}
	}
}

// due returns the messages that the broker has not heard of for a while.
func (s *source) due(now time.Time) (due []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range s.here {
		if now.Sub(it.since) >= extendEach/2 {
			it.since = now
			due = append(due, it)
		}
	}
	return due
}
